"""One attempt at a job, from the claim to its end in SQL: folder, engine, relay, artifacts, signature."""

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy.orm import Session

from api.store import attempts
from api.store.artifacts import StoredFile
from api.store.attempts import Claim
from api.store.blobs import Blobs
from api.store.errors import BlobDamaged, BlobMissing
from api.store.records import ArtifactKind
from api.store.session import Database
from api.store.tables import Job
from api.store.vault import Vault
from core.errors import CheckpointError, LeaseLost, LetheError, SpecError, Stopped
from core.report.schema import Report
from worker import evidence
from worker.checkpoints import CheckpointStore
from worker.engine import Spare
from worker.folder import attempt_folder, fill, restore_checkpoint
from worker.relay import ENGINE_SHARE, Relay
from worker.settings import WorkerSettings
from worker.settle import discard, settled

log = structlog.get_logger()
Result = TypeVar("Result")


@dataclass(frozen=True)
class Bench:
    """What every attempt of this worker is made with."""

    settings: WorkerSettings
    database: Database
    blobs: Blobs
    spare: Spare
    leaving: threading.Event
    signing_key: bytes
    vault: Vault
    name: str


def run_next(bench: Bench) -> bool:
    """Claim the job whose turn it is and carry it out; False where none waits that could begin now."""
    with bench.database.transaction() as session:
        claim = attempts.claim_next(session, worker=bench.name, lease=bench.settings.lease_seconds, vault=bench.vault)
    if claim is None:
        return False
    bench.blobs.delete(claim.unused)
    told = log.bind(job=claim.job_id, attempt=claim.attempt)
    told.info("claimed", resumes_from=claim.checkpoint.step if claim.checkpoint else None)
    try:
        with attempt_folder(bench.settings.work_dir, claim) as folder:
            _attempt(bench, claim, folder)
        told.info("attempt ended")
    except LeaseLost:
        told.warning("lease lost")
    except Exception as error:
        # Ours, not the engine's: a full disk, say. The job is given back at once instead of when its lease runs out.
        told.exception("attempt broke off")
        _release(bench, claim, f"the worker failed: {_told(error)}")
    finally:
        bench.spare.refill()
    return True


def _attempt(bench: Bench, claim: Claim, folder: Path) -> None:
    settings = bench.settings
    checkpoints = CheckpointStore(bench.database, bench.blobs, claim)
    engine = bench.spare.take()
    loose: list[str] = []  # sealed blobs that no row refers to yet
    try:
        with Relay(
            bench.database, claim, engine, checkpoints, settings.lease_seconds, settings.grace_seconds, bench.leaving
        ) as relay:
            try:
                _carry_out(bench, claim, folder, relay, loose)
            except Stopped:
                _give_back(bench, claim, relay, Stopped.exit_code)
    finally:
        # The relay has ended, so nothing is being stored any more. A sealed file's address is no other file's: nobody
        # else would find them for long.
        checkpoints.close()
        discard(bench.database, bench.blobs, claim.job_id, loose)


def _carry_out(bench: Bench, claim: Claim, folder: Path, relay: Relay, loose: list[str]) -> None:
    lease = bench.settings.lease_seconds * ENGINE_SHARE
    try:
        command = relay.meanwhile(lambda: fill(folder, claim, bench.blobs, lease))
    except (BlobMissing, BlobDamaged, SpecError) as error:
        told = error.as_dict()
        _settle(bench, lambda session: attempts.fail(session, claim, told))
        return
    try:
        resume = relay.meanwhile(lambda: restore_checkpoint(folder, claim, bench.blobs))
    except (BlobMissing, BlobDamaged) as error:
        _without_checkpoint(bench, claim, error)
        return
    code = relay.run(command | {"resume": str(resume) if resume else None})
    if code == 0 and "done" in relay.said:
        _succeed(bench, claim, relay, loose)
    else:
        _end(bench, claim, relay, code)


def _succeed(bench: Bench, claim: Claim, relay: Relay, loose: list[str]) -> None:
    done = relay.said["done"]
    out = Path(done["report"]).parent
    report = Report.model_validate_json(Path(done["report"]).read_bytes())

    def sealed(name: str) -> StoredFile:
        blob = bench.blobs.put(out / name, claim.key, move=True)
        loose.append(blob.digest)
        return StoredFile(name, blob.digest, blob.size, sealed=True)

    def store() -> dict[ArtifactKind, list[StoredFile]]:
        model = Path(done["model"])
        return {
            "model": [_put(bench.blobs, model / name, f"model/{name}") for name in report.output_files],
            # Scores of single rows say which text was to be forgotten, and hold what the model made of it.
            "rows": [sealed(name) for name in done.get("rows", ())],
            "plot": [_put(bench.blobs, out / name, name) for name in done.get("plots", ())],
        }

    def signed(session: Session, job: Job) -> dict[ArtifactKind, StoredFile]:
        _still_there(bench.blobs, stored["model"])
        evidence.write(session, job, report, bench.signing_key, out, retention_days=bench.settings.retention_days)
        return {
            "report": _put(bench.blobs, out / evidence.PLAIN, evidence.PLAIN),
            "envelope": _put(bench.blobs, out / evidence.ENVELOPE, evidence.ENVELOPE),
        }

    stored = relay.meanwhile(store)
    unused = _settle(
        bench,
        lambda session: attempts.finish(
            session,
            claim,
            verdict=report.verdict.verdict,
            files=stored,
            sign=signed,
            model_digest=report.output_model,
        ),
    )
    loose.clear()
    bench.blobs.delete(unused)


def _put(blobs: Blobs, path: Path, name: str) -> StoredFile:
    blob = blobs.put(path, move=True)
    return StoredFile(name, blob.digest, blob.size)


def _still_there(blobs: Blobs, files: Iterable[StoredFile]) -> None:
    """Raises BlobMissing for a file that was in the store already, as one of a model that has just been deleted."""
    if gone := [file.digest for file in files if not blobs.holds(file.digest)]:
        raise BlobMissing(f"Artifact {gone[0]} is not in the artifact store any more.")


def _end(bench: Bench, claim: Claim, relay: Relay, code: int) -> None:
    """The engine left no report: decide between cancelled, queued again and failed."""
    error = relay.said.get("error")
    if error is None or code == Stopped.exit_code:
        _give_back(bench, claim, relay, code)
    elif error["code"] == CheckpointError.code and claim.checkpoint:
        _without_checkpoint(bench, claim, CheckpointError(error["message"]))
    elif error["retryable"]:
        _release(bench, claim, f"the engine failed: {error['message']}")
    else:
        told = {name: error[name] for name in ("code", "message", "param", "retryable")}
        _settle(bench, lambda session: attempts.fail(session, claim, told))


def _told(error: Exception) -> str:
    """What may be said of it: messages of libraries may quote the forget set, those of the system do not."""
    reason = f" ({os.strerror(error.errno)})" if isinstance(error, OSError) and error.errno else ""
    return type(error).__name__ + reason


def _give_back(bench: Bench, claim: Claim, relay: Relay, code: int) -> None:
    if relay.stopped_for == "cancel":
        _settle(bench, lambda session: attempts.cancelled(session, claim))
    elif relay.stopped_for == "leaving":
        _release(bench, claim, "the worker left", counts=False)
    else:
        _release(
            bench, claim, f"the engine was ended by signal {-code}" if code < 0 else f"the engine ended with {code}"
        )
    if relay.engine.said_before_start:
        log.error("the engine did not start", said=relay.engine.said_before_start)


def _release(bench: Bench, claim: Claim, reason: str, *, counts: bool = True) -> None:
    cap = bench.settings.attempts_cap
    _settle(bench, lambda session: attempts.release(session, claim, reason=reason, counts=counts, cap=cap))


def _settle(bench: Bench, work: Callable[[Session], Result]) -> Result:
    """Write how the attempt ended. Nobody else can have taken the job before its lease has passed."""
    return settled(bench.database, bench.settings.lease_seconds, work)


def _without_checkpoint(bench: Bench, claim: Claim, error: LetheError) -> None:
    """The checkpoint cannot be used: forget it, and let the next attempt begin at an older one or at the start."""
    assert claim.checkpoint is not None
    log.error("checkpoint discarded", job=claim.job_id, step=claim.checkpoint.step, reason=error.message)
    step = claim.checkpoint.step
    unused = _settle(bench, lambda session: attempts.discard_checkpoint(session, claim, step))
    # Not the job's fault, and there are only so many checkpoints to discard.
    _release(bench, claim, error.message, counts=False)
    bench.blobs.delete(unused)
