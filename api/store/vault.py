"""Keys at rest: each data set's key, job's key and webhook's secret is wrapped under the deployment's master key.

Whoever has the database without the master key has nothing; whoever destroys a wrapped key has destroyed what it opens.
"""

import hashlib
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

    def fingerprint(self, content: bytes) -> str:
        """HMAC-SHA256 under a key of the deployment's own, in hex: equal content is found, and cannot be guessed."""
        return hmac.new(self._printing, content, hashlib.sha256).hexdigest()


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, None, purpose).derive(secret)
