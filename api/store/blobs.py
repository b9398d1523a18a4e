"""The artifact store: files addressed by the SHA-256 of their bytes, in a folder or in any object store fsspec knows.

A file sealed under a key is addressed by its ciphertext, so nothing about the plaintext can be learnt from names.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from api.store import sealed
from api.store.errors import BlobDamaged, BlobMissing, InvalidSetting

PIECE = 1 << 20
DRAWERS = 256  # folders right below the root
# Object stores that every process of the service reaches; the driver of each is a package of its own.
REMOTE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Blob:
    """What was stored: its address and its size in bytes there."""

    digest: str
    size: int


class Blobs:
    """Files at `aa/bb/<sha256>` below a URL. Each appears whole or not at all; storing one twice changes nothing."""

    def __init__(self, url: str, remote: Collection[str] = REMOTE) -> None:
        """`remote` are the schemes allowed beside `file`. Raises InvalidSetting for a URL that cannot be used."""
        if fault := _fault(url, remote):
            raise _unusable(fault, remote)
        try:
            self._fs, self._root = url_to_fs(url)
        except ImportError as error:
            raise _unusable(str(error), remote) from None
        except ValueError:
            raise _unusable("its driver does not understand it", remote) from None
        self._local = isinstance(self._fs, LocalFileSystem)

    def put(self, source: Path | BinaryIO, key: bytes | None = None, *, move: bool = False) -> Blob:
        """Store a file, sealed if there is a key. `move` also takes it away from where it was, if it is a path.

        With `move` nobody else may hold the file open: on the same file system it becomes the blob itself.
        """
        if isinstance(source, Path):
            if move and key is None and self._local and (blob := self._adopt(source)):
                return blob
            with source.open("rb") as stream:
                blob = self._store(stream, key)
            if move:
                source.unlink()
            return blob
        return self._store(source, key)

    def get(self, digest: str, target: Path, key: bytes | None = None) -> None:
        """Write a blob to `target`, readable by its owner alone, unsealed if there is a key.

        `target` appears only once all is checked. Raises BlobMissing, and BlobDamaged if one bit is not as it was.
        """
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            with self.open(digest) as stream, _private(part) as file:
                hashed = _Hashed(stream)
                pieces = _pieces(hashed) if key is None else sealed.unseal(cast(BinaryIO, hashed), key)
                for piece in pieces:
                    file.write(piece)
            if hashed.digest() != digest:
                raise _damaged(digest, hashed.digest())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def link(self, digest: str, target: Path) -> None:
        """As `get` of what is not sealed; in a folder of the same file system without a copy, so `target` is for
        reading only."""
        try:
            if not self._local:
                raise OSError(errno.EXDEV, "an object store has no links")
            os.link(self._address(digest), target)
        except OSError:
            self.get(digest, target)
            return
        with target.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != digest:
            target.unlink()
            raise _damaged(digest, found)

    def holds(self, digest: str) -> bool:
        """Whether the blob is there."""
        return bool(self._fs.exists(self._address(digest)))

    def read(self, digest: str, key: bytes) -> bytes:
        """A small sealed blob, unsealed and whole. Raises BlobMissing and BlobDamaged."""
        with self.open(digest) as stream:
            return b"".join(sealed.unseal(stream, key))

    def open(self, digest: str) -> BinaryIO:
        """A blob's bytes as stored, unchecked, as a stream to be closed. Raises BlobMissing."""
        try:
            return cast(BinaryIO, self._fs.open(self._address(digest), "rb"))
        except FileNotFoundError:
            raise BlobMissing(f"Artifact {digest} is not in the artifact store.") from None

    def delete(self, digests: Iterable[str]) -> None:
        """Remove blobs; those that are not there count as removed."""
        for digest in digests:
            try:
                self._fs.rm_file(self._address(digest))
            except FileNotFoundError:
                continue

    def in_drawer(self, number: int) -> list[str]:
        """Digests of the blobs in one of the DRAWERS."""
        folder = f"{self._root}/{number:02x}"
        try:
            names = (str(path).rpartition("/")[2] for path in self._fs.find(folder))
            return [name for name in names if _DIGEST.fullmatch(name)]
        except FileNotFoundError:
            return []

    def age(self, digest: str) -> float | None:
        """Seconds since the blob was last stored; None where it is not there."""
        try:
            return time.time() - float(self._fs.modified(self._address(digest)).timestamp())
        except FileNotFoundError:
            return None

    def remove_abandoned(self, older_than: float) -> int:
        """Remove what a `put` left whose process was killed and that nobody has touched for so many seconds."""
        removed = 0
        found = list(Path(self._root, "incoming").glob("*")) if self._local else []
        if not found:
            return 0
        # By the file system's own clock: this machine's may be days off, and would take what is being written away.
        probe = self._incoming()
        moment = probe.stat().st_mtime
        probe.rmdir()
        for folder in found:
            with suppress(FileNotFoundError):  # Its `put` may be just about to end.
                touched = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
                if moment - touched > older_than:
                    shutil.rmtree(folder, ignore_errors=True)
                    removed += 1
        return removed

    def _address(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise BlobMissing(f"{digest!r} is no artifact's digest: 64 hexadecimal digits are.")
        return f"{self._root}/{digest[:2]}/{digest[2:4]}/{digest}"

    def _incoming(self) -> Path:
        # Beside the blobs, so that the last step is a rename; for an object store, wherever there is room.
        if not self._local:
            return Path(tempfile.mkdtemp(prefix="lethe-"))
        folder = Path(self._root, "incoming", secrets.token_hex(8))
        folder.mkdir(parents=True)
        return folder

    def _store(self, stream: BinaryIO, key: bytes | None) -> Blob:
        folder = self._incoming()
        try:
            whole = hashlib.sha256()
            size = 0
            with _private(folder / "blob") as file:
                for piece in _pieces(stream) if key is None else sealed.seal(stream, key):
                    whole.update(piece)
                    size += len(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            self._place(folder / "blob", whole.hexdigest())
            return Blob(whole.hexdigest(), size)
        finally:
            shutil.rmtree(folder)

    def _adopt(self, source: Path) -> Blob | None:
        """The source itself as a blob, without a copy; None where it is not a plain file that is ours alone."""
        facts = source.lstat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            return None
        folder = self._incoming()
        try:
            try:
                taken = source.replace(folder / "blob")
            except OSError as error:
                # Also between two mounts of one file system, whose devices are the same.
                if error.errno == errno.EXDEV:
                    return None
                raise
            with taken.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                os.fsync(stream.fileno())
            self._place(taken, digest)
            return Blob(digest, facts.st_size)
        finally:
            shutil.rmtree(folder)

    def _place(self, file: Path, digest: str) -> None:
        address = self._address(digest)
        if not self._local:
            self._fs.put_file(str(file), address)
            return
        target = Path(address)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.chmod(0o440)
        # A row must never outlive the file it refers to, also when the power fails.
        file.replace(target)
        for folder in (target.parent, target.parent.parent, Path(self._root)):
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def _damaged(digest: str, found: str) -> BlobDamaged:
    return BlobDamaged(f"Artifact {digest} is damaged: its content has the digest {found}.")


def _fault(url: str, remote: Collection[str]) -> str | None:
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        return None if rest.startswith("/") and rest.strip("/") else "it names no absolute path"
    if scheme not in remote or "::" in rest:
        return "it does not begin with a scheme that is known here"
    return None if rest.strip("/") else "it names no bucket"


def _unusable(fault: str, remote: Collection[str]) -> InvalidSetting:
    # The URL is not repeated: it may hold credentials.
    return InvalidSetting(
        f"LETHE_ARTIFACTS_URL cannot be used: {fault}. Allowed: file:///absolute/path, or <scheme>://bucket/prefix "
        f"where fsspec's driver is installed: {', '.join(remote)}.",
        param="artifacts_url",
    )


class _Hashed:
    """A stream that hashes what is read from it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        self._hash.update(piece)
        return piece

    def digest(self) -> str:
        return self._hash.hexdigest()


def _pieces(stream: BinaryIO | _Hashed) -> Iterator[bytes]:
    while piece := stream.read(PIECE):
        yield piece


@contextmanager
def _private(path: Path) -> Iterator[BinaryIO]:
    """A new file that only its owner may read: plaintext of a forget set may go through it."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        yield file
