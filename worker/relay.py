"""Carries the engine's events to SQL, renews the lease with them, and turns a cancel or a leaving worker into a stop.

The engine's own lease is shorter than the row's: it has stopped by the time another worker may begin.
"""

import queue
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from api.store import attempts
from api.store.attempts import Note
from api.store.claims import Claim
from api.store.metrics import Measurement
from api.store.session import Database
from core.errors import Stopped
from worker.checkpoints import CheckpointStore
from worker.engine import Engine, Event
from worker.milestones import Milestones

log = structlog.get_logger()
Result = TypeVar("Result")

_FLUSH_SECONDS = 0.3
_TELL_SECONDS = 1.0
# The engine's deadline starts when it reads the renewal, a moment after the database's; this keeps it the earlier one.
ENGINE_SHARE = 0.8


@dataclass
class _Page:
    """What is still to be written of one job."""

    claim: Claim
    progress: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether only its progress is to be told."""
        return not self.notes and not self.measurements


@dataclass
class Relay:
    """One attempt's conversation with its engine, as a block at whose end the engine has ended, whatever happened.

    What the engine says of one of several jobs that share the run is written of that one, everything else of all.

    Long work of the worker's own (`meanwhile`) goes on beside it, so that the lease is kept through that too.
    """

    database: Database
    claim: Claim
    engine: Engine
    store: CheckpointStore
    lease: float
    grace: float
    leaving: threading.Event
    said: dict[str, Event] = field(default_factory=dict)  # the last event of each kind
    stopped_for: str | None = None  # "cancel" or "leaving"

    def __post_init__(self) -> None:
        self._pages = {each.job_id: _Page(each) for each in self.claim.everyone}
        self._flushed = self._told = 0.0
        self._stop_by = 0.0
        self._urgent = True
        self._background = ThreadPoolExecutor(1, thread_name_prefix="files")
        self._saving: list[tuple[Future[None], Path, int]] = []
        self.milestones = Milestones(self.engine.pid)

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.kill()
        self.engine.wait()
        self.milestones.ended()
        self._background.shutdown(wait=True, cancel_futures=True)

    def run(self, command: Mapping[str, Any]) -> int:
        """Give the engine its command and relay until it ends; returns its exit code. Raises LeaseLost."""
        self.engine.start(command)
        ended = False
        while not ended:
            ended = self._take()
            self._look()
        code = self.engine.wait()
        while self._saving:
            time.sleep(0.02)
            self._collect()
            self._flush()
        self._flush_at_last()
        return code

    def meanwhile(self, work: Callable[[], Result]) -> Result:
        """Do this work and keep the lease until it is done. Raises what it raises, LeaseLost, and Stopped where the
        job is to be cancelled or the worker leaves."""
        doing = self._background.submit(work)
        while not doing.done():
            time.sleep(0.02)
            cancel = self._flush()
            # An engine that was asked to stop and came to its end all the same: what it made is stored.
            if self.stopped_for is None and (cancel or self.leaving.is_set()):
                self.stopped_for = "cancel" if cancel else "leaving"
                raise Stopped(f"stopped for {self.stopped_for}")
        return doing.result()

    def _take(self) -> bool:
        """Take what the engine said since the last look; True at its end."""
        until = time.monotonic() + _FLUSH_SECONDS
        while (left := until - time.monotonic()) > 0:
            try:
                event = self.engine.events.get(timeout=left)
            except queue.Empty:
                return False
            if event is None:
                return True
            self._enter(event)
            if self._urgent:
                return False
        return False

    def _look(self) -> None:
        """Write what is due, and stop the engine where that was asked for."""
        self._collect()
        cancel = self._flush()
        if self.stopped_for is None and (cancel or self.leaving.is_set()):
            self.stopped_for = "cancel" if cancel else "leaving"
            self._stop_by = time.monotonic() + self.grace
            self.engine.stop()
        if self.stopped_for and time.monotonic() > self._stop_by:
            self.engine.kill()

    def _collect(self) -> None:
        """Take what storing checkpoints has come to. Where the database was away it is done again, since the folder is
        still there, unless the worker must leave. Raises whatever else went wrong."""
        done = [entry for entry in self._saving if entry[0].done()]
        self._saving = [entry for entry in self._saving if entry not in done]
        for future, folder, step in done:
            try:
                if not future.cancelled():
                    future.result()
            except DBAPIError as error:
                log.warning("database unreachable", job=self.claim.job_id, error=type(error.orig).__name__)
                if self.leaving.is_set():
                    raise
                # Once a look: whoever tried on and on here would neither renew the lease nor hear the engine end.
                time.sleep(_FLUSH_SECONDS)
                self._save(folder, step)

    def _save(self, folder: Path, step: int) -> None:
        """Store a checkpoint; those that still wait are overtaken by it, and need not be stored at all."""
        for waiting, old, _ in self._saving:
            if waiting.cancel():
                shutil.rmtree(old, ignore_errors=True)
        self._saving.append((self._background.submit(self.store.keep, folder, step), folder, step))

    def _flush_at_last(self) -> None:
        """Write what is left to say, for as long as the lease can hold."""
        until = time.monotonic() + self.lease
        self._flush(force=True)
        while not self._written() and time.monotonic() < until:
            time.sleep(_FLUSH_SECONDS)
            self._flush(force=True)

    def _written(self) -> bool:
        return all(page.empty for page in self._pages.values())

    def _flush(self, force: bool = False) -> bool:
        waited = time.monotonic() - self._flushed
        something = not self._written()
        due = (
            force
            or self._urgent
            or waited > self.lease / 3
            or waited > _TELL_SECONDS
            or (something and waited > _FLUSH_SECONDS)
        )
        if not due:
            return False
        self._flushed, self._urgent = time.monotonic(), False
        try:
            with self.database.transaction() as session:
                # In one transaction: all jobs of a run keep their lease, or none does.
                asked = [self._record(session, page) for page in self._pages.values()]
        except DBAPIError as error:
            # The database is away: what was said is kept and written later. The engine ends itself with its lease.
            log.warning("database unreachable", job=self.claim.job_id, error=type(error.orig).__name__)
            return False
        for page in self._pages.values():
            page.notes, page.measurements = [], []
        self.engine.renew(self.lease * ENGINE_SHARE)
        self.milestones.renewed()
        return any(asked)

    def _record(self, session: Session, page: _Page) -> bool:
        return attempts.record(
            session,
            page.claim,
            lease=self.lease,
            progress=page.progress,
            notes=page.notes,
            measurements=page.measurements,
        )

    def _enter(self, event: Event) -> None:
        kind = event.pop("event")
        self.said[kind] = event
        self.milestones.hear(kind, event)
        if kind == "checkpoint":
            self._save(Path(event["folder"]), event["step"])
            return
        job = event.pop("job", None)
        tell = kind == "step" and self._due(event)
        for page in self._pages.values() if job is None else [self._pages[job]]:
            self._write(page, kind, event, tell)

    def _write(self, page: _Page, kind: str, event: Event, tell: bool) -> None:
        if kind == "step":
            self._step(page, event, tell)
        elif kind == "progress":
            page.progress |= {name: event[name] for name in ("phase", "done", "total")}
        elif kind == "phase":
            page.progress = {"phase": event["phase"]}
            self._note(page, kind, event)
        elif kind == "scores":
            page.measurements.append(Measurement(event["when"], 0, event["metrics"]))
            self._note(page, kind, {"when": event["when"]})
        elif kind == "watch":
            page.measurements.append(Measurement("watch", event["step"], event["metrics"]))
            self._note(page, kind, event)
        elif kind in ("accepted", "attack"):
            self._note(page, kind, event)
        # `done` and `error` are written by whoever ends the attempt; `ready` is old news, and so may others be.

    def _note(self, page: _Page, kind: str, event: Event) -> None:
        page.notes.append(Note(kind, event))
        self._urgent = True

    def _due(self, event: Event) -> bool:
        """Whether a step is told in the history: one a second, and the last."""
        if time.monotonic() - self._told <= _TELL_SECONDS and event["step"] != event["steps"]:
            return False
        self._told = time.monotonic()
        return True

    def _step(self, page: _Page, event: Event, tell: bool) -> None:
        numbers = {name: value for name, value in event.items() if name not in ("at", "step", "steps", "seconds_left")}
        page.measurements.append(Measurement("step", event["step"], numbers))
        keep = ("step", "steps", "loss", "seconds_left")
        page.progress = {"phase": "train"} | {name: event[name] for name in keep}
        if tell:
            page.notes.append(Note("progress", dict(page.progress)))
