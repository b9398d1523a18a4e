"""Takes a checkpoint that the engine has completed into the artifact store; it counts once its rows are committed."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from api.store import attempts
from api.store.artifacts import StoredFile
from api.store.attempts import Claim
from api.store.blobs import Blobs
from api.store.session import Database
from worker.settle import discard

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class CheckpointStore:
    """Keeps the checkpoints of one attempt, sealed under the claim's key."""

    database: Database
    blobs: Blobs
    claim: Claim

    def keep(self, folder: Path, step: int) -> None:
        """Store the folder's files, write its rows, drop blobs that nothing refers to any more, remove the folder.

        Raises LeaseLost.
        """
        names = [MANIFEST, *json.loads((folder / MANIFEST).read_text())["files"]]
        files: list[StoredFile] = []
        try:
            for name in names:
                blob = self.blobs.put(folder / name, self.claim.key)
                files.append(StoredFile(name, blob.digest, blob.size, sealed=True))
            with self.database.transaction() as session:
                unused = attempts.save_checkpoint(session, self.claim, step, files)
        except BaseException:
            # A sealed file's address is no other file's: nobody else would find them for long.
            discard(self.database, self.blobs, self.claim.job_id, [file.digest for file in files])
            raise
        self.blobs.delete(unused)
        shutil.rmtree(folder, ignore_errors=True)
