"""What is sealed comes back exactly under its key, and not at all if anything about it is different."""

import io

import pytest

from api.store import sealed
from api.store.errors import BlobDamaged

FRAME = sealed.FRAME
HEADER = len(sealed.MAGIC) + sealed.SALT
KEY = bytes(range(32))


def seal(plain: bytes, key: bytes = KEY) -> bytes:
    return b"".join(sealed.seal(io.BytesIO(plain), key))


def unseal(ciphertext: bytes, key: bytes = KEY) -> bytes:
    return b"".join(sealed.unseal(io.BytesIO(ciphertext), key))


@pytest.mark.parametrize("size", [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME])
def test_there_and_back(size: int) -> None:
    plain = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    ciphertext = seal(plain)
    assert unseal(ciphertext) == plain
    assert len(ciphertext) == HEADER + size + sealed.TAG * max(1, -(-size // FRAME))
    assert plain[:64] not in ciphertext or size < 16
    assert seal(plain) != ciphertext


class Slow(io.BytesIO):
    """A stream that gives a few bytes at a time, as a socket may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 70_001))


def test_short_reads_change_nothing() -> None:
    plain = bytes(2 * FRAME + 5)
    ciphertext = b"".join(sealed.seal(Slow(plain), KEY))
    assert b"".join(sealed.unseal(Slow(ciphertext), KEY)) == plain


PLAIN = bytes([1]) * FRAME + bytes([2]) * FRAME + bytes([3]) * 100
WHOLE = seal(PLAIN)
FRAMES = [
    WHOLE[HEADER : HEADER + FRAME + 16],
    WHOLE[HEADER + FRAME + 16 : HEADER + 2 * (FRAME + 16)],
    WHOLE[HEADER + 2 * (FRAME + 16) :],
]
HEAD = WHOLE[:HEADER]
TAMPERED = {
    "a bit of the magic": bytes([WHOLE[0] ^ 1]) + WHOLE[1:],
    "a bit of the salt": WHOLE[: HEADER - 1] + bytes([WHOLE[HEADER - 1] ^ 1]) + WHOLE[HEADER:],
    "a bit of the first frame": WHOLE[:HEADER] + bytes([WHOLE[HEADER] ^ 128]) + WHOLE[HEADER + 1 :],
    "the last bit": WHOLE[:-1] + bytes([WHOLE[-1] ^ 1]),
    "cut by a byte": WHOLE[:-1],
    "cut at a frame": HEAD + FRAMES[0] + FRAMES[1],
    "cut to the first frame": HEAD + FRAMES[0],
    "cut to the header": HEAD,
    "cut in the header": HEAD[:20],
    "empty": b"",
    "frames swapped": HEAD + FRAMES[1] + FRAMES[0] + FRAMES[2],
    "a frame left out": HEAD + FRAMES[0] + FRAMES[2],
    "a frame repeated": HEAD + FRAMES[0] + FRAMES[0] + FRAMES[1] + FRAMES[2],
    "something added": WHOLE + b"\0",
    "a frame added": WHOLE + FRAMES[2],
    "another file's frame": HEAD + seal(PLAIN)[HEADER : HEADER + FRAME + 16] + FRAMES[1] + FRAMES[2],
}


@pytest.mark.parametrize("how", TAMPERED)
def test_any_change_is_found(how: str) -> None:
    with pytest.raises(BlobDamaged):
        unseal(TAMPERED[how])


def test_another_key_does_not_open() -> None:
    with pytest.raises(BlobDamaged, match="not its key"):
        unseal(WHOLE, bytes(32))
