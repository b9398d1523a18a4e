"""A data set's files, by their names: in a local folder here, on the hub in `core.data.hub`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.errors import DataError
from core.spec.layouts import listing


class Repository(Protocol):
    """Files by their paths below the top, written with `/`."""

    def names(self, folders: Iterable[str]) -> list[str]:
        """What lies at the top, and at any depth in these folders; a folder's name ends in `/`."""

    def file(self, name: str) -> Path:
        """The file, on this machine."""


@dataclass(frozen=True)
class Folder:
    """A local folder."""

    path: Path

    def names(self, folders: Iterable[str]) -> list[str]:
        """The top and these folders. Raises DataError where there is no such folder."""
        try:
            return listing(self.path, folders)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read as a folder: {error.strerror}", param="path") from None

    def file(self, name: str) -> Path:
        """The file in its place."""
        return self.path / name
