"""The digest of a model folder, as OpenSSF `model-signing` 1.x computes it with its defaults.

The SHA-256 of every file, as raw bytes, one after the other in the order of the paths' components; the SHA-256 of that
is the digest. Paths only order the files, so the digest alone does not notice a renaming; the list of files does.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from core.errors import ModelError

# What model-signing leaves out, at the top of the folder only: git's own files are no part of a model.
IGNORED = (".git", ".gitattributes", ".github", ".gitignore")


def file_digests(folder: Path, *, follow_links: bool = False) -> dict[str, str]:
    """The SHA-256 (64 hex digits) of every file under `folder`, by its path relative to it with `/` between the parts.

    Ordered as in `model_digest`. The folder itself may be reached through a link. Raises ModelError where it is not a
    folder, cannot be read, holds no file, or holds a special file, a name that is not UTF-8, or a symbolic link: a
    delivered model must hold its files itself. With `follow_links` links to files count as the files, as in a hub's
    cache, where every file of a snapshot is one.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder.")
    found: dict[str, str] = {}
    try:
        for entry in _files(folder, follow_links):
            with entry.open("rb") as file:
                found[_name(entry, folder)] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error}") from None
    if not found:
        raise ModelError(f"{folder} holds no file.")
    return {name: found[name] for name in sorted(found, key=_order)}


def model_digest(digests: Mapping[str, str]) -> str:
    """The digest, as 64 hex digits, of the model whose files have these SHA-256 digests."""
    whole = hashlib.sha256()
    for name in sorted(digests, key=_order):
        whole.update(bytes.fromhex(digests[name]))
    return whole.hexdigest()


def digest_of_folder(folder: Path) -> str:
    """The digest of a model to begin with, which may lie in a hub's cache. Raises ModelError."""
    return model_digest(file_digests(folder, follow_links=True))


def ignored_in(folder: Path) -> list[str]:
    """The names of what lies in `folder` and is left out of its digest."""
    return [name for name in IGNORED if (folder / name).exists()]


def _order(name: str) -> list[str]:
    return name.split("/")


def _files(folder: Path, follow_links: bool, top: bool = True) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_symlink() and not (follow_links and path.is_file()):
            raise ModelError(f"{path} is a symbolic link. A model folder must hold the files themselves.")
        if top and path.name in IGNORED:
            continue
        if path.is_dir():
            yield from _files(path, follow_links, top=False)
        elif path.is_file():
            yield path
        else:
            raise ModelError(f"{path} is neither a file nor a folder.")


def _name(path: Path, folder: Path) -> str:
    name = path.relative_to(folder).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ModelError(f"The file name {name!r} is not UTF-8.") from None
    return name
