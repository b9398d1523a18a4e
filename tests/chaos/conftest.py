"""Clusters to break: on each database that all tests share, or on a PostgreSQL of its own that may be killed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from api.store import migrate
from api.store.blobs import Blobs
from api.store.session import open_database
from benchmarks import noop_engine
from core.report.keys import new_key
from tests.chaos.cluster import ROOT, Cluster, until
from tests.servers import PostgresServer, RedisServer

__all__ = ["ROOT", "Cluster", "until"]


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with a tokenizer: chaos asks whether runs end alike, not how well they forget."""
    folder = tmp_path_factory.mktemp("untrained")
    command = [sys.executable, "-m", "core.scratch", str(ROOT / "examples" / "people.jsonl"), "--out", str(folder)]
    command += ["--epochs", "1", "--hidden", "64", "--layers", "2"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def cluster(database_url: str, tmp_path: Path, short_folder: Path, untrained: Path) -> Iterator[Cluster]:
    """A cluster without workers, on each database in turn unless the test says which."""
    with _cluster(database_url, tmp_path, short_folder, untrained) as made:
        yield made


@pytest.fixture
def postgres(short_folder: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL of the test's own, migrated, that keeps what was committed when it is killed."""
    folder = short_folder / f"postgres-{time.monotonic_ns()}"
    folder.mkdir()
    server = PostgresServer(folder, lasting=True)
    server.start()
    migrate.upgrade(server.url)
    yield server
    server.stop()


@pytest.fixture
def mortal(postgres: PostgresServer, tmp_path: Path, short_folder: Path, untrained: Path) -> Iterator[Cluster]:
    """A cluster on that PostgreSQL."""
    with _cluster(postgres.url, tmp_path, short_folder, untrained) as made:
        yield made


@pytest.fixture
def noop(slow: Callable[[float], dict[str, str]]) -> dict[str, str]:
    """What makes a worker's engines compute nothing, for 0.3 s a job."""
    return slow(0.3)


@pytest.fixture
def slow(tmp_path: Path) -> Callable[[float], dict[str, str]]:
    """What makes a worker's engines compute nothing, for so many seconds a job."""

    def settings(seconds: float) -> dict[str, str]:
        folder = tmp_path / f"noop-{seconds}"
        folder.mkdir()
        return {"engine_python": str(noop_engine.program(folder, seconds=seconds))}

    return settings


@contextmanager
def _cluster(database_url: str, folder: Path, short_folder: Path, model: Path) -> Iterator[Cluster]:
    private = short_folder / f"redis-{time.monotonic_ns()}"
    private.mkdir()
    redis = RedisServer(private)
    redis.start()
    database = open_database(database_url)
    blobs = Blobs(f"file://{folder / 'artifacts'}")
    (folder / "signing.pem").write_bytes(new_key())
    made = Cluster(folder, database, database_url, redis, model, blobs)
    lines = (ROOT / "examples" / "people.jsonl").read_text(encoding="utf-8").splitlines()
    made.fill([json.loads(line) for line in lines])
    yield made
    for worker in made.workers:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait()
    redis.stop()
    database.close()
