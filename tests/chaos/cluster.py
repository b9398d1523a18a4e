"""What is broken here: a database, a Redis, real worker processes on them, and jobs worth waiting for."""

import hmac
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import psutil
from sqlalchemy.orm import Session

from api.queue import Queue
from api.store import artifacts, datasets, events, jobs, keys, life, models, sealed
from api.store.blobs import Blobs
from api.store.session import Database
from api.store.tables import Job
from core.report.digest import file_digests, model_digest
from core.spec.job import parse
from tests.attempts import attempts_of
from tests.servers import RedisServer
from tests.vault import MASTER, VAULT

ROOT = Path(__file__).parents[2]
Result = TypeVar("Result")


def until(what: Callable[[], Result | None], seconds: float = 90.0) -> Result:
    """What `what` gives once it gives something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing within {seconds} s")


@dataclass
class Worker:
    """A Celery worker process, and whatever it has started."""

    process: subprocess.Popen[bytes]
    log: Path
    paused: bool = False

    def children(self) -> list[psutil.Process]:
        """Its engines: the busy one and the spare."""
        return [p for p in psutil.Process(self.process.pid).children() if "core.child" in p.cmdline()]

    def engine(self) -> psutil.Process:
        """The engine at work: it has used more of its life than the spare, which waits."""
        return max(self.children(), key=lambda p: sum(p.cpu_times()[:2]))

    def pause(self) -> None:
        """Freeze the worker's process alone, as a debugger or a stalled disk does; its engine goes on."""
        self.process.send_signal(signal.SIGSTOP)
        self.paused = True

    def wake(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)
        self.paused = False

    def kill(self) -> None:
        """What the kernel's memory killer does."""
        self.process.kill()
        self.process.wait()

    def leave(self) -> float:
        """SIGTERM; returns the seconds it took to go."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - began


@dataclass
class Cluster:
    """All of the service but its HTTP door."""

    folder: Path
    database: Database
    database_url: str
    redis: RedisServer
    model: Path
    blobs: Blobs
    workers: list[Worker] = field(default_factory=list)
    key_id: str = ""
    model_id: str = ""
    sets: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)  # of every worker, beside what each is given

    @property
    def work_dir(self) -> Path:
        """Where the workers' attempts lie."""
        return self.folder / "work"

    def worker(self, **settings: str) -> Worker:
        """Start a worker; settings are LETHE_ variables without the prefix."""
        number = len(self.workers)
        environment = os.environ | {
            "LETHE_DATABASE_URL": self.database_url,
            "LETHE_BROKER_URL": self.redis.broker_url,
            "LETHE_ARTIFACTS_URL": f"file://{self.folder / 'artifacts'}",
            "LETHE_MASTER_KEY": MASTER,
            "LETHE_WORK_DIR": str(self.work_dir),
            "LETHE_SIGNING_KEY_FILE": str(self.folder / "signing.pem"),
            "LETHE_LEASE_SECONDS": "4",
            "LETHE_POLL_SECONDS": "1",
            # Two engines at once on two cores; the digest of a run holds for one thread count.
            "OMP_NUM_THREADS": "1",
            **self.environment,
            **{f"LETHE_{name.upper()}": value for name, value in settings.items()},
        }
        log = self.folder / f"worker-{number}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--pool=threads"),
                    *("--concurrency=1", "--without-gossip", "--without-mingle", "-n", f"chaos{number}@test"),
                ],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.workers.append(Worker(process, log))
        return self.workers[-1]

    def submit(self, *, ring: bool = True, **training: Any) -> str:
        """Queue a job; returns its id."""
        with self.database.transaction() as session:
            job_id = self.create(session, **training)
        if ring:
            self.ring(job_id)
        return job_id

    def create(
        self,
        session: Session,
        *,
        idempotency_key: str | None = None,
        fields: Mapping[str, Any] | None = None,
        **training: Any,
    ) -> str:
        """Queue a job in this transaction, with `fields` in place of the spec's own; returns its id."""
        spec = parse(
            {
                "model": self.model_id,
                "data": {name: {"source": "upload", "dataset": row} for name, row in self.sets.items()},
                "method": "NPO",
                "optimizer": {"name": "sophia_g", "lr": 1e-4, "every": 3},
                "training": {"steps": 60, "batch_size": 4, "checkpoint_every": 5, **training},
                "evaluation": {"max_new_tokens": 4, "watch_rows": 2, "bootstrap": 100},
                "gates": [{"metric": "forget.probability", "at_most": 0.5}],
                "threads": 1,
                **(fields or {}),
            }
        )
        return jobs.create(session, spec, key_id=self.key_id, idempotency_key=idempotency_key)[0].id

    def ring(self, job_id: str) -> None:
        """Send the job's id to the queue."""
        queue = Queue(self.redis.broker_url, 2.0)
        queue.ring(job_id)
        queue.close()

    def cancel(self, job_id: str) -> None:
        """Ask for the job's end."""
        with self.database.transaction() as session:
            life.request_cancel(session, job_id, self.key_id)

    def job(self, job_id: str) -> Job:
        """The job's row as it is now."""
        with self.database.reading() as session:
            return jobs.get(session, job_id)

    def ended(self, job_id: str, seconds: float = 90.0) -> Job:
        """Wait for the job's end."""
        terminal = ("succeeded", "failed", "cancelled")
        return until(lambda: job if (job := self.job(job_id)).status in terminal else None, seconds)

    def succeeded(self, job_id: str, seconds: float = 90.0) -> bool:
        """Wait for the job's end; what went wrong is told where something did."""
        job = self.ended(job_id, seconds)
        told = "".join(worker.log.read_text()[-3000:] for worker in self.workers)
        assert (job.status, job.error) == ("succeeded", None), told
        return True

    def in_training(self, job_id: str, step: int = 10) -> Job:
        """Wait until the job has trained past a step and left a checkpoint."""

        def far_enough() -> Job | None:
            job = self.job(job_id)
            assert job.status in ("queued", "running"), job.status
            return job if (job.progress.get("step") or 0) >= step and self.files(job_id, "checkpoint") else None

        return until(far_enough)

    def files(self, job_id: str, kind: Any = None) -> dict[str, str]:
        """The job's artifacts: name to digest."""
        with self.database.reading() as session:
            return {a.name: a.digest for a in artifacts.of(session, job_id, kind)}

    def attempts(self, job_id: str) -> list[Any]:
        """The job's attempts."""
        with self.database.reading() as session:
            return list(attempts_of(session, job_id))

    def weights(self, job_id: str) -> str:
        """SHA-256 of the final weights."""
        return self.files(job_id)["model/model.safetensors"]

    def reports(self, job_id: str) -> int:
        """How many reports the job has; each was signed, and each ended the job."""
        with self.database.reading() as session:
            made = [len(artifacts.of(session, job_id, kind)) for kind in ("report", "envelope")]
            ends = [e for e in events.since(session, job_id) if e.kind == "status" and e.data["to"] == "succeeded"]
        assert made == [len(ends), len(ends)]
        return len(ends)

    def nothing_left_behind(self) -> None:
        """No attempt's folder stays; the worker removes it just after the job has ended."""
        until(lambda: not list(self.work_dir.glob("job_*")), 10)

    def fill(self, rows: list[dict[str, Any]]) -> None:
        """Register a key, the model, and the first eight rows as what to forget."""
        with self.database.transaction() as session:
            self.key_id = keys.create(session, b"secret", name="chaos", actor="test")[0].id
            files = file_digests(self.model)
            registered, _ = models.register(
                session,
                path=str(self.model),
                digest=model_digest(files),
                files={name: {"sha256": digest, "size": 0} for name, digest in files.items()},
                architecture="LlamaForCausalLM",
                key_id=self.key_id,
            )
            self.model_id = registered.id
        for name, part in (("forget", rows[:8]), ("retain", rows[8:24])):
            self.sets[name] = self.upload(part)

    def upload(self, rows: list[dict[str, Any]]) -> str:
        """Register a data set of these rows; returns its id."""
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        key = sealed.new_key()
        blob = self.blobs.put(BytesIO(content), key)
        with self.database.transaction() as session:
            dataset = datasets.register(
                session,
                VAULT,
                rows=len(rows),
                size=len(content),
                blob=blob.digest,
                key=key,
                commitment=hmac.digest(key, content, "sha256").hex(),
                warnings=[],
                key_id=self.key_id,
            )
        return dataset.id
