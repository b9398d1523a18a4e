"""A data set of the hub at one commit: its files are fetched into the hub's own cache when they are first read.

With HF_HUB_OFFLINE=1 what the cache holds is all there is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from core.data.repository import Folder
from core.errors import DataError

# In this order: the first are kinds of the later.
_REASONS: dict[type[Exception], str] = {
    GatedRepoError: "its owners let in only whom they have approved: ask there, then set HF_TOKEN",
    RepositoryNotFoundError: "the hub has no such data set, or it is private and HF_TOKEN is not set",
    RevisionNotFoundError: "the data set has no such commit",
    LocalEntryNotFoundError: "it is not in the hub's cache here, and the hub cannot be reached",
    EntryNotFoundError: "the data set has no such file at this commit",
}


@dataclass(frozen=True)
class HubCommit:
    """A `core.data.repository.Repository`. `revision` is a full commit hash."""

    hub: str
    revision: str

    def names(self, folders: Iterable[str]) -> list[str]:
        """The top and these folders are listed, and no others: some repositories have very many files.

        Raises DataError where the hub cannot be asked, or does not have the data set or the commit.
        """
        if constants.HF_HUB_OFFLINE:
            return self._cached(folders)
        inner = [name for folder in sorted(set(folders) - {""}) for name in self._listed(folder)]
        return list(dict.fromkeys([*self._listed(None), *inner]))

    def file(self, name: str) -> Path:
        """The file in the hub's cache, fetched if need be. Raises DataError where it cannot be."""
        try:
            return Path(hf_hub_download(self.hub, name, repo_type="dataset", revision=self.revision))
        except Exception as error:
            # What a library says to a broken connection is of any type: its own, its HTTP client's, the system's.
            raise self._failed(error, f", {name}") from None

    def _listed(self, folder: str | None) -> list[str]:
        try:
            entries = HfApi().list_repo_tree(
                self.hub, folder, recursive=folder is not None, repo_type="dataset", revision=self.revision
            )
            return [entry.path if isinstance(entry, RepoFile) else f"{entry.path}/" for entry in entries]
        except EntryNotFoundError as error:
            if folder is None:
                raise self._failed(error) from None
            return []
        except Exception as error:
            raise self._failed(error) from None

    def _cached(self, folders: Iterable[str]) -> list[str]:
        snapshots = Path(constants.HF_HUB_CACHE) / f"datasets--{self.hub.replace('/', '--')}" / "snapshots"
        if not (snapshots / self.revision).is_dir():
            raise self._failed(LocalEntryNotFoundError(""))
        return Folder(snapshots / self.revision).names(folders)

    def _failed(self, error: Exception, what: str = "") -> DataError:
        unknown = f"the hub cannot be reached ({type(error).__name__})"
        reason = next((text for kind, text in _REASONS.items() if isinstance(error, kind)), unknown)
        field = "revision" if isinstance(error, RevisionNotFoundError) else "hub"
        return DataError(f"{self.hub} at {self.revision}{what}: {reason}", param=field)
