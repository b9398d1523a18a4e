"""What a run has left for one job: stored, signed, and entered as that job's own."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.orm import Session

from api.store import attempts
from api.store.artifacts import StoredFile
from api.store.blobs import Blobs
from api.store.claims import Claim
from api.store.errors import BlobMissing
from api.store.records import ArtifactKind
from api.store.tables import Job
from core.report.schema import Report
from worker import evidence
from worker.engine import Event


@dataclass
class Delivery:
    """`told`: what the engine's last event says of this job. `loose` takes sealed blobs that no row refers to yet."""

    blobs: Blobs
    signing_key: bytes
    retention_days: float
    claim: Claim
    told: Event
    loose: list[str]
    files: dict[ArtifactKind, Sequence[StoredFile]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out = Path(self.told["report"]).parent
        self.report = Report.model_validate_json(Path(self.told["report"]).read_bytes())

    @property
    def passed(self) -> bool:
        """Whether every gate of the job holds."""
        return self.report.verdict.verdict == "passed"

    def store(self, model: Sequence[StoredFile]) -> None:
        """Take its files into the store, beside those of the model, which are there."""
        self.files = {
            "model": model,
            # Scores of single rows say which text was to be forgotten, and hold what the model made of it.
            "rows": [self._sealed(name) for name in self.told.get("rows", ())],
            "plot": [_put(self.blobs, self.out / name, name) for name in self.told.get("plots", ())],
        }

    def finish(self, session: Session, promotes: bool) -> list[str]:
        """The job has succeeded; see `attempts.finish`."""
        return attempts.finish(
            session,
            self.claim,
            verdict=self.report.verdict.verdict,
            files=self.files,
            sign=self._signed,
            model_digest=self.report.output_model,
            promotes=promotes,
        )

    def _sealed(self, name: str) -> StoredFile:
        blob = self.blobs.put(self.out / name, self.claim.key, move=True)
        self.loose.append(blob.digest)
        return StoredFile(name, blob.digest, blob.size, sealed=True)

    def _signed(self, session: Session, job: Job) -> dict[ArtifactKind, StoredFile]:
        _still_there(self.blobs, self.files["model"])
        evidence.write(session, job, self.report, self.signing_key, self.out, retention_days=self.retention_days)
        return {
            "report": _put(self.blobs, self.out / evidence.PLAIN, evidence.PLAIN),
            "envelope": _put(self.blobs, self.out / evidence.ENVELOPE, evidence.ENVELOPE),
        }


def model_files(blobs: Blobs, model: Path, report: Report) -> list[StoredFile]:
    """The files of the delivered model, taken into the store."""
    return [_put(blobs, model / name, f"model/{name}") for name in report.output_files]


def _put(blobs: Blobs, path: Path, name: str) -> StoredFile:
    blob = blobs.put(path, move=True)
    return StoredFile(name, blob.digest, blob.size)


def _still_there(blobs: Blobs, files: Iterable[StoredFile]) -> None:
    """Raises BlobMissing for a file that was in the store already, as one of a model that has just been deleted."""
    if gone := [file.digest for file in files if not blobs.holds(file.digest)]:
        raise BlobMissing(f"Artifact {gone[0]} is not in the artifact store any more.")
