"""Encryption of files of any size under one 256-bit key: AES-GCM over frames of 1 MiB.

The STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár (CRYPTO 2015): the nonce of a frame holds its number
and whether it is the last one, so that a frame altered, moved, repeated, added or cut off is found.
"""

import secrets
from collections.abc import Iterator
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from api.store.errors import BlobDamaged

KEY_BYTES = 32
FRAME = 1 << 20  # bytes of plaintext in every frame but the last
TAG = 16
SALT = 32
MAGIC = b"lethe-sealed-1\n"


def new_key() -> bytes:
    """A random key."""
    return secrets.token_bytes(KEY_BYTES)


def seal(plain: BinaryIO, key: bytes) -> Iterator[bytes]:
    """The ciphertext of all that `plain` holds, in pieces. The same plaintext gives another ciphertext every time."""
    salt = secrets.token_bytes(SALT)
    cipher = _cipher(key, salt)
    yield MAGIC + salt
    for number, frame, last in _frames(plain, FRAME):
        yield cipher.encrypt(_nonce(number, last), frame, None)


def unseal(sealed: BinaryIO, key: bytes) -> Iterator[bytes]:
    """The plaintext, in pieces, each one checked before it is given out; complete only when the iterator ends.

    Raises BlobDamaged at the first frame that is not as it was sealed, or not under this key.
    """
    header = read_fully(sealed, len(MAGIC) + SALT)
    if len(header) < len(MAGIC) + SALT or not header.startswith(MAGIC):
        raise BlobDamaged("This is no sealed file: its header is missing.")
    cipher = _cipher(key, header[len(MAGIC) :])
    for number, frame, last in _frames(sealed, FRAME + TAG):
        try:
            yield cipher.decrypt(_nonce(number, last), frame, None)
        except InvalidTag:
            raise BlobDamaged(f"Frame {number} of a sealed file is damaged, or this is not its key.") from None


def commitment_key(key: bytes) -> bytes:
    """The key of the commitment to a set that is sealed under `key`: it goes with that one, and tells nothing of it."""
    return HKDF(SHA256(), KEY_BYTES, None, b"lethe commitment").derive(key)


def read_fully(source: BinaryIO, size: int) -> bytes:
    """`size` bytes, fewer only at the end; a raw stream may give less at a time."""
    pieces = []
    while size > 0 and (piece := source.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _frames(source: BinaryIO, size: int) -> Iterator[tuple[int, bytes, bool]]:
    frame, number = read_fully(source, size), 0
    while True:
        following = read_fully(source, size) if len(frame) == size else b""
        yield number, frame, not following
        if not following:
            return
        frame, number = following, number + 1


def _cipher(key: bytes, salt: bytes) -> AESGCM:
    # A key for each file: numbers may then serve as nonces, however many files share the data set's key.
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, b"lethe sealed file").derive(key))


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
