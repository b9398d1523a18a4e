"""A storm of faults over a running cluster, drawn by a seeded generator: which fault, when, and to whom."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from api.store import aliases, life
from api.store.errors import Conflict
from api.store.life import TERMINAL
from api.store.tables import Job
from tests.chaos.cluster import Cluster, Worker
from tests.servers import PostgresServer

LEASE = 2.0
ALIAS = "production"


@dataclass
class Storm:
    """`jobs` requests in all while `faults` strike, one every `pause` seconds or so."""

    cluster: Cluster
    postgres: PostgresServer
    seed: int
    jobs: int
    faults: int
    pause: float
    workers: int = 4
    settings: dict[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._began = time.monotonic()
        self._later: list[tuple[float, Callable[[], None]]] = []  # what ends a fault that lasts
        self._submitted: list[str] = []
        self._settings = {
            "lease_seconds": str(LEASE),
            "poll_seconds": "0.5",
            # Faults are not the jobs' fault here: none may fail for having met too many.
            "attempts_cap": "1000",
            **self.settings,
        }
        self.patiently(
            lambda session: aliases.promote(session, ALIAS, self.cluster.model_id, reason="first", actor="storm")
        )
        self._up: list[Worker] = [self.cluster.worker(**self._settings) for _ in range(self.workers)]

    def blow(self) -> None:
        """Submit the requests one after the other while the faults strike."""
        next_fault = time.monotonic() + self.pause
        while len(self._submitted) < self.jobs or len(self.told) < self.faults:
            if len(self._submitted) * self.faults < self.jobs * (len(self.told) + 1):
                self._submit()
            if time.monotonic() > next_fault:
                next_fault = time.monotonic() + self._random.uniform(0.3, 1.7) * self.pause
                self._random.choices(list(FAULTS), list(FAULTS.values()))[0](self)
            self._mend(time.monotonic())
            time.sleep(0.05)

    def calm(self, seconds: float) -> None:
        """Mend all, wait until every job has ended, and send the workers home."""
        self._mend(float("inf"))
        self._man()
        until = time.monotonic() + seconds
        while (ended := self._ended()) < self.jobs:
            assert time.monotonic() < until, f"{ended} of {self.jobs} jobs ended within {seconds:.0f} s of calm"
            self._man()
            time.sleep(0.1)
        for worker in self._up:
            worker.leave()
            assert worker.process.returncode == 0, worker.log.read_text()[-3000:]

    def patiently(self, work: Callable[[Session], Any]) -> Any:
        """Do it in a transaction as often as it takes: the database may be away, or go away as it commits."""
        while True:
            try:
                with self.cluster.database.transaction() as session:
                    return work(session)
            except DBAPIError:
                self._mend(time.monotonic())
                time.sleep(0.05)

    def _tell(self, what: str) -> None:
        self.told.append(f"{time.monotonic() - self._began:6.2f} s  {what}")

    def _mend(self, now: float) -> None:
        due = [entry for entry in self._later if entry[0] <= now]
        self._later = [entry for entry in self._later if entry[0] > now]
        for _, end in due:
            end()

    def _for_a_while(self, least: float, most: float, end: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + self._random.uniform(least, most), end))

    def _man(self) -> None:
        """As many workers as there were."""
        self._up = [worker for worker in self._up if worker.process.poll() is None]
        while len(self._up) < self.workers:
            self._up.append(self.cluster.worker(**self._settings))

    def _ended(self) -> int:
        count = select(func.count()).select_from(Job).where(Job.status.in_(TERMINAL))
        return int(self.patiently(lambda session: session.scalar(count)))

    def _submit(self) -> None:
        # One name for each request: where its commit broke off, it is made again or found to be there.
        name = f"storm-{self.seed}-{len(self._submitted)}"
        # A third may share runs, which takes asking for the same; a sixth are on one alias, and run in turn.
        kind = self._random.choice(("alone", "alone", "alone", "shared", "shared", "alias"))
        steps = 8 if kind == "shared" else self._random.randint(2, 20)
        fields = {"alone": {}, "shared": {"batch": True}, "alias": {"model": {"alias": ALIAS}}}[kind]
        made = self.patiently(
            lambda session: self.cluster.create(
                session, idempotency_key=name, fields=fields, steps=steps, checkpoint_every=2
            )
        )
        self._submitted.append(made)
        if not self._later and self._random.random() < 0.7:
            with suppress(Exception):
                self.cluster.ring(made)

    def _worker(self) -> Worker | None:
        awake = [worker for worker in self._up if worker.process.poll() is None and not worker.paused]
        return self._random.choice(awake) if awake else None

    def kill_worker(self) -> None:
        """As the kernel's memory killer does; another is started a moment later."""
        if worker := self._worker():
            self._tell(f"worker {worker.process.pid} killed")
            worker.kill()
            self._for_a_while(0.0, 1.0, self._man)

    def dismiss_worker(self) -> None:
        """SIGTERM, as a deployment does."""
        if worker := self._worker():
            self._tell(f"worker {worker.process.pid} asked to leave")
            worker.process.terminate()
            self._for_a_while(0.0, 1.0, self._man)

    def pause_worker(self) -> None:
        """For less than a lease, or more."""
        if worker := self._worker():
            self._tell(f"worker {worker.process.pid} paused")
            worker.pause()
            self._for_a_while(0.5, 2 * LEASE, worker.wake)

    def kill_engine(self) -> None:
        """The engine at work, or the spare."""
        if worker := self._worker():
            with suppress(psutil.NoSuchProcess, IndexError):
                engine = self._random.choice(worker.children())
                self._tell(f"engine {engine.pid} killed")
                engine.kill()

    def kill_redis(self) -> None:
        """It comes back empty."""
        if self.cluster.redis.process:
            self._tell("redis killed")
            self.cluster.redis.kill()
            self._for_a_while(0.0, 1.5, self.cluster.redis.start)

    def flush_redis(self) -> None:
        """It forgets everything."""
        if self.cluster.redis.process:
            self._tell("redis emptied")
            with self.cluster.redis.client() as client:
                client.flushall()

    def kill_postgres(self) -> None:
        """And all that was not committed with it."""
        if self.postgres.process:
            self._tell("postgres killed")
            self.postgres.kill()
            self._for_a_while(0.0, 1.5, self.postgres.start)

    def cancel_job(self) -> None:
        """Whatever it is doing."""
        self._ask("cancelled", life.request_cancel)

    def retry_job(self) -> None:
        """One that was cancelled goes on."""
        self._ask("retried", life.retry)

    def _ask(self, what: str, action: Callable[..., Any]) -> None:
        if self._submitted:
            job_id = self._random.choice(self._submitted)
            with suppress(Conflict):
                self.patiently(lambda session: action(session, job_id, self.cluster.key_id))
                self._tell(f"{job_id} {what}")


FAULTS: dict[Callable[[Storm], None], int] = {
    Storm.kill_worker: 3,
    Storm.dismiss_worker: 2,
    Storm.pause_worker: 3,
    Storm.kill_engine: 4,
    Storm.kill_redis: 2,
    Storm.flush_redis: 1,
    Storm.kill_postgres: 2,
    Storm.cancel_job: 3,
    Storm.retry_job: 3,
}
