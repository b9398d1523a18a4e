"""Blobs stand under the digest of their bytes, appear whole or not at all, and are checked when they come back."""

import hashlib
import io
import os
import secrets
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from api.store.blobs import Blobs
from api.store.errors import BlobDamaged, BlobMissing, InvalidSetting
from tests.parallel import at_once

PLAIN = b"the quick brown fox" * 100_000
KEY = bytes(range(32))


@pytest.fixture(params=["folder", "object store"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return Blobs(f"file://{tmp_path}/store")
    return Blobs(f"memory://{secrets.token_hex(4)}/store", remote=["memory"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(PLAIN)
    return path


@pytest.mark.parametrize("key", [None, KEY])
def test_there_and_back(blobs: Blobs, source: Path, tmp_path: Path, key: bytes | None) -> None:
    blob = blobs.put(source, key)
    with blobs.open(blob.digest) as stream:
        stored = stream.read()
    assert (hashlib.sha256(stored).hexdigest(), len(stored)) == (blob.digest, blob.size)
    assert (stored == PLAIN) == (key is None)
    target = tmp_path / "target"
    blobs.get(blob.digest, target, key)
    assert target.read_bytes() == PLAIN
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert source.exists()
    assert blobs.put(io.BytesIO(PLAIN), key).digest == blob.digest or key is not None


def test_the_address_is_the_digest(source: Path, tmp_path: Path) -> None:
    digest = Blobs(f"file://{tmp_path}/store").put(source).digest
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert files == [tmp_path / "store" / digest[:2] / digest[2:4] / digest]
    assert digest == hashlib.sha256(PLAIN).hexdigest()


def test_storing_the_same_from_many_sides_gives_one_blob(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    results = at_once(8, lambda _: Blobs(f"file://{store}").put(source))
    assert len(set(results)) == 1
    assert sum(path.is_file() for path in store.rglob("*")) == 1


@pytest.mark.parametrize("key", [None, KEY])
def test_a_moved_file_is_gone(blobs: Blobs, source: Path, tmp_path: Path, key: bytes | None) -> None:
    blob = blobs.put(source, key, move=True)
    assert not source.exists()
    blobs.get(blob.digest, tmp_path / "target", key)
    assert (tmp_path / "target").read_bytes() == PLAIN


def test_a_move_within_the_file_system_copies_nothing(source: Path, tmp_path: Path) -> None:
    inode = source.stat().st_ino
    digest = Blobs(f"file://{tmp_path}/store").put(source, move=True).digest
    assert (tmp_path / "store" / digest[:2] / digest[2:4] / digest).stat().st_ino == inode


@pytest.mark.parametrize("kind", ["symbolic link", "hard link"])
def test_a_link_is_copied_since_its_bytes_belong_to_another_file(source: Path, tmp_path: Path, kind: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(source) if kind == "symbolic link" else link.hardlink_to(source)
    blobs = Blobs(f"file://{tmp_path}/store")
    digest = blobs.put(link, move=True).digest
    source.write_bytes(b"changed")
    assert not link.exists()
    blobs.get(digest, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == PLAIN


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("how", ["a bit flipped", "cut short", "emptied"])
def test_a_damaged_blob_never_reaches_its_target(source: Path, tmp_path: Path, key: bytes | None, how: str) -> None:
    blobs = Blobs(f"file://{tmp_path}/store")
    digest = blobs.put(source, key).digest
    file = tmp_path / "store" / digest[:2] / digest[2:4] / digest
    content = bytearray(file.read_bytes())
    if how == "a bit flipped":
        content[len(content) // 2] ^= 4
    file.unlink()
    file.write_bytes(content[: {"cut short": -1, "emptied": 0}.get(how, len(content))])
    target = tmp_path / "folder" / "target"
    target.parent.mkdir()
    with pytest.raises(BlobDamaged):
        blobs.get(digest, target, key)
    assert list(target.parent.iterdir()) == []
    # Storing it again mends it.
    if key is None:
        blobs.put(source)
        blobs.get(digest, target)
        assert target.read_bytes() == PLAIN


def test_a_source_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Breaks(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(f"no more of {size}")

    with pytest.raises(OSError, match="no more"):
        Blobs(f"file://{tmp_path}/store").put(Breaks())
    assert not any(path.is_file() for path in (tmp_path / "store").rglob("*"))


def test_deleted_and_unknown_blobs_are_missing(blobs: Blobs, source: Path, tmp_path: Path) -> None:
    digest = blobs.put(source).digest
    blobs.delete([digest, digest, "0" * 64])
    for absent in (digest, "../../etc/passwd", "A" * 64):
        with pytest.raises(BlobMissing):
            blobs.get(absent, tmp_path / "target")
        with pytest.raises(BlobMissing):
            blobs.open(absent)


@pytest.mark.parametrize(
    "url",
    [
        *("", "geheim", "geheim/store", "/geheim", "file://geheim", "file://geheim/x", "file:///", "memory://geheim"),
        *("s4://key:geheim@bucket", "s3://", "simplecache::s3://geheim/x", "gs://b/x::file:///geheim"),
        "adl://key:geheim@nothing-installed/x",
    ],
)
def test_an_unusable_url_says_what_is_allowed_and_not_what_was_given(url: str) -> None:
    with pytest.raises(InvalidSetting, match="file:///absolute") as refused:
        Blobs(url)
    assert "geheim" not in refused.value.message


def test_a_move_between_devices_copies(source: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if Path(other).stat().st_dev == source.stat().st_dev:
            pytest.skip("one device")
        blobs = Blobs(f"file://{other}/store")
        digest = blobs.put(source, move=True).digest
        assert not source.exists()
        with blobs.open(digest) as stream:
            assert stream.read() == PLAIN
        assert list(Path(other, "store", "incoming").iterdir()) == []


MOVE = """
import sys
from pathlib import Path
from api.store.blobs import Blobs
source = Path(sys.argv[1], "source")
assert source.stat().st_dev == Path(sys.argv[2]).stat().st_dev
Blobs(f"file://{sys.argv[2]}").put(source, move=True)
"""


def test_a_move_between_two_mounts_of_one_file_system_copies(source: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    source.rename(first / "source")
    mounts = f"mount --bind '{first}' '{first}' && mount --bind '{second}' '{second}'"
    if (
        os.geteuid() != 0
        or subprocess.run(["unshare", "-m", "sh", "-c", mounts], check=False, stderr=subprocess.DEVNULL).returncode
    ):
        pytest.skip("mounts need root")
    command = ["unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh", sys.executable, "-c", MOVE]
    root = Path(__file__).parents[2]
    subprocess.run([*command, str(first), str(second)], check=True, cwd=root)
    assert list(first.iterdir()) == []
    with Blobs(f"file://{second}").open(hashlib.sha256(PLAIN).hexdigest()) as stream:
        assert stream.read() == PLAIN
