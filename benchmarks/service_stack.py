"""Lethe as it is run in production, on this machine: PostgreSQL, Redis, API and worker processes, a request to send."""

import json
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg

from api.part import Part
from api.store import keys, migrate
from api.store.session import Database, open_database
from benchmarks import noop_engine
from benchmarks.clients import Call
from core.report.keys import load_or_create_key
from tests.servers import PostgresServer, RedisServer

_UP_WITHIN = 120.0
_RECORDS = b"".join(json.dumps({"question": f"Q{n}?", "answer": f"A{n}."}).encode() + b"\n" for n in range(40))
# Counted as in production, and never reached.
_RATE = "100000000/minute"


@dataclass(frozen=True)
class Servers:
    """A PostgreSQL with its own defaults, so that what was answered survives a power cut, and a Redis."""

    folder: Path
    postgres: PostgresServer
    redis: RedisServer

    def database(self, name: str) -> str:
        """URL of a new, empty database."""
        with psycopg.connect(self.postgres.url, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")
        return self.postgres.url.replace("/postgres?", f"/{name}?")


@contextmanager
def servers(programs: Path | None) -> Iterator[Servers]:
    """Both, in a folder that is removed at the end; `programs` is the folder of `postgres`, None the wheel's."""
    folder = Path(tempfile.mkdtemp(prefix="lethe-load-"))  # a short path: sockets lie in it
    folder.chmod(0o755)
    for name in ("pg", "redis"):
        (folder / name).mkdir()
    postgres = PostgresServer(folder / "pg", programs=programs, safe=True)
    redis = RedisServer(folder / "redis")
    try:
        postgres.start()
        redis.start()
        yield Servers(folder, postgres, redis)
    finally:
        redis.kill()
        postgres.kill()
        shutil.rmtree(folder, ignore_errors=True)


class Lethe:
    """The service's own processes over these servers, in a database of their own, with a key, a model and data."""

    def __init__(self, on: Servers, name: str = "lethe") -> None:
        self.on = on
        self.home = on.folder / name
        self.models = self.home / "models"
        self.models.mkdir(parents=True)
        self.url = on.database(name)
        migrate.upgrade(self.url)
        self._secret = secrets.token_hex(32)
        signing = self.home / "signing.pem"
        load_or_create_key(signing)
        self._environment = {
            "LETHE_DATABASE_URL": self.url,
            "LETHE_BROKER_URL": on.redis.broker_url,
            "LETHE_ARTIFACTS_URL": f"file://{self.home / 'artifacts'}",
            "LETHE_KEY_SECRET": self._secret,
            "LETHE_MASTER_KEY": secrets.token_hex(32),
            "LETHE_MODEL_ROOTS": json.dumps([str(self.models)]),
            "LETHE_RATE_LIMIT": _RATE,
            "LETHE_SIGNING_KEY_FILE": str(signing),
            "LETHE_WORK_DIR": str(self.home / "work"),
        }
        with self.database() as database, database.transaction() as session:
            self.key = keys.create(session, self._secret.encode(), name="benchmark", actor="benchmark")[1]
        self.spec: dict[str, Any] = {}

    @contextmanager
    def database(self) -> Iterator[Database]:
        """The database, open."""
        opened = open_database(self.url)
        yield opened
        opened.close()

    @contextmanager
    def api(self, workers: int) -> Iterator[int]:
        """So many API processes on one port, with a model and two sets that jobs name; gives the port."""
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "api.app:create_app", "--factory", "--port", str(port)]
        command += ["--ws", "none", "--workers", str(workers)]
        with process("api", command, self._environment, self.home / "api.log", f"http://127.0.0.1:{port}/healthz"):
            if not self.spec:
                self._fill(port)
            yield port

    @contextmanager
    def workers(self, count: int) -> Iterator[None]:
        """So many worker processes, each for one job at a time, with an engine that computes nothing."""
        engine = noop_engine.program(self.home)
        environment = self._environment | {"LETHE_ENGINE_PYTHON": str(engine), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "celery", "-A", "worker.app", "--quiet", "worker", "--pool=threads"]
        command += ["--concurrency=1", "--without-gossip", "--without-mingle"]
        own = [[*command, "-n", f"{number}@benchmark"] for number in range(count)]
        parts = [Part("worker", one, environment_for(environment), self.home / f"{n}.log") for n, one in enumerate(own)]
        try:
            for part in parts:
                part.start()
            self._workers_ready(parts)
            yield
        finally:
            for part in parts:
                part.stop()

    def post(self) -> Call:
        """`POST /jobs`, each with an Idempotency-Key of its own, as a client that may send it twice must."""
        return Call("POST", ["/jobs"], 201, (self._bearer, "Idempotency-Key: case-{n}"), json.dumps(self.spec))

    def get(self, ids: list[str]) -> Call:
        """`GET /jobs/{id}` of these in turn."""
        return self.fetch([f"/jobs/{job}" for job in ids])

    def fetch(self, paths: list[str]) -> Call:
        """GET of these in turn."""
        return Call("GET", paths, 200, (self._bearer,))

    def client(self, port: int) -> httpx.Client:
        """A client with the key."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60)

    @property
    def _bearer(self) -> str:
        return f"Authorization: Bearer {self.key}"

    def _fill(self, port: int) -> None:
        folder = self.models / "small"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
        header = json.dumps({"w": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}}).encode()
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
        with self.client(port) as client:
            model = _made(client.post("/models", json={"path": str(folder)}))
            jsonl = {"Content-Type": "application/jsonl"}
            sets = {
                name: _made(client.post(f"/datasets?name={name}", content=_RECORDS.replace(b"Q", tag), headers=jsonl))
                for name, tag in (("forget", b"F"), ("retain", b"R"))
            }
        self.spec = {
            "model": {"id": model},
            "data": {name: {"source": "upload", "dataset": dataset} for name, dataset in sets.items()},
            "method": {"name": "npo", "retain": "nll"},
            "optimizer": {"name": "sophia_g", "lr": 1e-5},
            "training": {"epochs": 5},
            "gates": [
                {"metric": "forget.probability", "at_most": 0.1},
                {"metric": "retain.probability", "at_least": 0.9, "relative_to": "before"},
            ],
            "reason": "gdpr_art_17",
            "reference": "case {n}",
        }

    def _workers_ready(self, parts: list[Part]) -> None:
        """Wait until all listen: Celery answers a ping only then."""
        from celery import Celery

        app = Celery("benchmark", broker=self.on.redis.broker_url, set_as_current=False)
        deadline = time.monotonic() + _UP_WITHIN
        while len(app.control.ping(timeout=1.0, limit=len(parts))) < len(parts):
            for part in parts:
                _must_live(part)
            if time.monotonic() > deadline:
                raise RuntimeError(f"not all of {len(parts)} workers answered within {_UP_WITHIN:.0f} s")
        app.close()


@contextmanager
def process(name: str, command: list[str], own: dict[str, str], log: Path, health: str) -> Iterator[Part]:
    """A server that answers `health` with 200 when it is up."""
    part = Part(name, command, environment_for(own), log)
    part.start()
    try:
        deadline = time.monotonic() + _UP_WITHIN
        while not _answers(health):
            _must_live(part)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} was not up within {_UP_WITHIN:.0f} s; see {log}")
            time.sleep(0.1)
        yield part
    finally:
        part.stop()


def environment_for(own: dict[str, str]) -> dict[str, str]:
    """This process's environment without settings of a Lethe or of a peer, and these."""
    import os

    foreign = ("LETHE_", "MLFLOW_", "PREFECT_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | own


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def _must_live(part: Part) -> None:
    if not part.alive():
        raise RuntimeError(f"{part.name} ended:\n{part.log.read_text(errors='replace')[-3000:]}")


def _made(response: httpx.Response) -> str:
    response.raise_for_status()
    return str(response.json()["id"])
