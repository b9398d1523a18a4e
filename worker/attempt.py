"""One attempt at a job, from the claim to its end in SQL: folder, engine, relay, artifacts, signature."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from api.store import aliases, attempts, claims, endings, lineage, runs
from api.store.blobs import Blobs
from api.store.claims import Claim
from api.store.errors import BlobDamaged, BlobMissing, InvalidSetting
from api.store.lineage import Removed
from api.store.session import Database
from api.store.vault import Vault
from core.errors import CheckpointError, LeaseLost, LetheError, SpecError, Stopped
from worker import cost, meter
from worker.checkpoints import CheckpointStore
from worker.delivery import Delivery, model_files
from worker.engine import Spare
from worker.folder import attempt_folder, fill, restore_checkpoint
from worker.recheck import listed
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
        claim = claims.claim_next(
            session,
            worker=bench.name,
            lease=bench.settings.lease_seconds,
            vault=bench.vault,
            most=bench.settings.batch_most,
        )
    if claim is None:
        return False
    began = time.monotonic()
    with structlog.contextvars.bound_contextvars(**_ids(claim)):
        log.info("claimed", resumes_from=claim.checkpoint.step if claim.checkpoint else None)
        try:
            _attempted(bench, claim)
        except LeaseLost:
            log.warning("lease lost")
        finally:
            bench.spare.refill()
    for each in claim.everyone:
        meter.ATTEMPTS.labels(_outcome(bench, each)).observe(time.monotonic() - began)
    return True


def _attempted(bench: Bench, claim: Claim) -> None:
    """The attempt, to whatever end. Raises LeaseLost."""
    try:
        bench.blobs.delete(claim.unused)
        with attempt_folder(bench.settings.work_dir, claim) as folder:
            _attempt(bench, claim, folder)
        log.info("attempt ended")
    except LeaseLost:
        raise
    except Exception as error:
        # Ours, not the engine's: a full disk, say. The job is given back at once instead of when its lease runs out.
        log.exception("attempt broke off")
        _release(bench, claim, f"the worker failed: {_told(error)}")


def _ids(claim: Claim) -> dict[str, Any]:
    """On every line of this attempt, whoever writes it: by the id of a request one finds all that it led to."""
    ids = {"job": claim.job_id, "attempt": claim.attempt, "request_id": claim.request_id}
    if not claim.others:
        return ids
    others = {"with": [each.job_id for each in claim.others]}
    return ids | others | {"with_requests": [each.request_id for each in claim.others]}


def _outcome(bench: Bench, claim: Claim) -> str:
    """What the attempt is known to have come to."""
    try:
        with bench.database.reading() as session:
            return attempts.outcome(session, claim) or "unknown"
    except DBAPIError:
        return "unknown"


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
        earlier = relay.meanwhile(lambda: _earlier(bench, claim, folder))
    except (BlobMissing, BlobDamaged, InvalidSetting, SpecError) as error:
        told, of = error.as_dict(), error.of
        log.error("its data cannot be had", code=error.code, of=of)
        _settle(bench, lambda session: endings.fail(session, claim, told, of))
        return
    try:
        resume = relay.meanwhile(lambda: restore_checkpoint(folder, claim, bench.blobs))
    except (BlobMissing, BlobDamaged) as error:
        _without_checkpoint(bench, claim, error)
        return
    code = relay.run(command | {"resume": str(resume) if resume else None, "earlier": earlier})
    if code == 0 and "done" in relay.said:
        _succeed(bench, claim, relay, loose)
    else:
        _end(bench, claim, relay, code)


def _earlier(bench: Bench, claim: Claim, folder: Path) -> str | None:
    """The list of what earlier jobs removed; None for a model that the service knows nothing of."""
    model, most = claim.model, bench.settings.recheck_most
    if model is None:
        return None
    found: list[Removed] = []
    count = 0
    if model.job_id is not None:
        found, count = _settle(bench, lambda session: lineage.removed_before(session, model, most))
    return str(listed(folder, found, count, bench.blobs, bench.vault))


def _succeed(bench: Bench, claim: Claim, relay: Relay, loose: list[str]) -> None:
    done = relay.said["done"]
    told = {each["job"]: each for each in done.get("members", ())} or {claim.job_id: done}
    days = bench.settings.retention_days
    left = [Delivery(bench.blobs, bench.signing_key, days, each, told[each.job_id], loose) for each in claim.everyone]

    def store() -> None:
        model = model_files(bench.blobs, Path(done["model"]), left[0].report)
        for each in left:
            each.store(model)

    spent = cost.of(left[0].report, claim, done, relay.milestones.seconds)

    def finish(session: Session) -> list[str]:
        if spent is not None:
            runs.note(session, claim.job_id, spent)
        # One model for all that share the run: an alias moves on to it once, where every one of them has passed.
        passed = all(each.passed for each in left)
        mover = aliases.mover(session, list(told)) or claim.job_id
        return [blob for each in left for blob in each.finish(session, passed and each.claim.job_id == mover)]

    relay.meanwhile(store)
    unused = _settle(bench, finish)
    loose.clear()
    bench.blobs.delete(unused)


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
        _settle(bench, lambda session: endings.fail(session, claim, told, error.get("of")))


def _told(error: Exception) -> str:
    """What may be said of it: messages of libraries may quote the forget set, those of the system do not."""
    reason = f" ({os.strerror(error.errno)})" if isinstance(error, OSError) and error.errno else ""
    return type(error).__name__ + reason


def _give_back(bench: Bench, claim: Claim, relay: Relay, code: int) -> None:
    if relay.stopped_for == "cancel":
        _settle(bench, lambda session: endings.cancelled(session, claim))
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
    _settle(bench, lambda session: endings.release(session, claim, reason=reason, counts=counts, cap=cap))


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
