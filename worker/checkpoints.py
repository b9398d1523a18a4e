"""Takes a checkpoint that the engine has completed into the artifact store; it counts once its rows are committed."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from api.store import attempts
from api.store.artifacts import StoredFile
from api.store.blobs import Blobs
from api.store.claims import Claim
from api.store.session import Database
from worker import meter
from worker.settle import discard

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class CheckpointStore:
    """Keeps the checkpoints of one attempt, sealed under the claim's `seal`."""

    database: Database
    blobs: Blobs
    claim: Claim
    # By step: what was stored and whose rows could not be written. A second try does not store it again.
    waiting: dict[int, list[StoredFile]] = field(default_factory=dict)

    def keep(self, folder: Path, step: int) -> None:
        """Store the folder's files, write its rows, drop blobs that nothing refers to any more, remove the folder.

        Raises LeaseLost, and DBAPIError where the database is away: then it may be called again.
        """
        files = self.waiting.setdefault(step, [])
        try:
            if not files:
                self._store(folder, files)
            with self.database.transaction() as session:
                unused = attempts.save_checkpoint(session, self.claim, step, files)
        except DBAPIError:
            raise
        except BaseException:
            self._give_up(step)
            raise
        meter.CHECKPOINT_BYTES.inc(sum(file.size for file in files))
        del self.waiting[step]
        self.blobs.delete(unused)
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Give up what waits: nobody will write its rows."""
        for step in list(self.waiting):
            self._give_up(step)

    def _store(self, folder: Path, files: list[StoredFile]) -> None:
        for name in (MANIFEST, *json.loads((folder / MANIFEST).read_text())["files"]):
            blob = self.blobs.put(folder / name, self.claim.seal)
            files.append(StoredFile(name, blob.digest, blob.size, sealed=True))

    def _give_up(self, step: int) -> None:
        # A sealed file's address is no other file's: nobody else would find them for long.
        files = self.waiting.pop(step)
        discard(self.database, self.blobs, self.claim.job_id, [file.digest for file in files])
