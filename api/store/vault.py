"""Keys at rest: each data set's key, job's key and webhook's secret is wrapped under the deployment's master key.

Whoever has the database without the master key has nothing; whoever destroys a wrapped key has destroyed what it opens.
"""

import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from api.store.errors import InvalidSetting

BARE = 32  # bytes of a key as the first version of Lethe stored it, unwrapped
_NONCE = 12
_TAG = 16


class Vault:
    """Wraps and unwraps keys. `secret` is the deployment's master key, of any length; it is stretched once."""

    def __init__(self, secret: bytes) -> None:
        self._wrapping = AESGCM(_derived(secret, b"lethe wrapped key"))
        self._printing = _derived(secret, b"lethe fingerprint")

    def wrap(self, key: bytes, about: str) -> bytes:
        """The key as it may be stored. `about` says whose it is, by id: under another name it does not open."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + self._wrapping.encrypt(nonce, key, about.encode())

    def unwrap(self, wrapped: bytes, about: str) -> bytes:
        """The key again, also one that is still stored bare.

        Raises InvalidSetting where it was destroyed, or the master key is not the one it was wrapped under.
        """
        if len(wrapped) == BARE:
            return wrapped
        if len(wrapped) <= _NONCE + _TAG:
            raise InvalidSetting(f"There is no wrapped key of {about}.", param="master_key")
        try:
            return self._wrapping.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], about.encode())
        except InvalidTag:
            said = f"LETHE_MASTER_KEY does not open the key of {about}: it is not the one under which that was stored."
            raise InvalidSetting(said, param="master_key") from None

    def fingerprint(self) -> "Fingerprint":
        """One to be fed with records."""
        return Fingerprint(self._printing)


class Fingerprint:
    """Of a set of records, in whatever order they come: equal sets are found, and nobody else can compute it.

    The records' HMACs under a key of the deployment's own are added up, since a sum asks neither for an order nor for
    memory (MSet-Add-Hash of Clarke, Devadas, van Dijk, Gassend and Suh, ASIACRYPT 2003), and hashed once more.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sum = 0
        self._rows = 0

    def add(self, record: bytes) -> None:
        """Take in one record, as `core.report.merkle.canonical` writes it."""
        self._sum += int.from_bytes(hmac.digest(self._key, b"\0" + record, "sha256"), "big")
        self._rows += 1

    def hex(self) -> str:
        """The fingerprint of all that was added."""
        whole = (self._sum % (1 << 256)).to_bytes(32, "big") + self._rows.to_bytes(8, "big")
        return hmac.digest(self._key, b"\1" + whole, "sha256").hex()


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, None, purpose).derive(secret)
