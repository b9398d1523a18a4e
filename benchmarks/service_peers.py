"""Services that others trust with records of long work, for comparison: an MLflow tracking server, a Prefect server.

Both as their documentation runs them in production: over PostgreSQL, the API apart from Prefect's background services,
Redis for Prefect's messages, uvicorn with uvloop and httptools.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.clients import Call
from benchmarks.service_stack import Servers, environment_for, free_port, process

_SHOWN = ("mlflow", "prefect", "prefect-redis", "uvicorn", "psycopg2-binary", "asyncpg", "sqlalchemy")


@dataclass(frozen=True)
class Target:
    """A service that listens, and the two operations that are compared: a record is made, a record is read."""

    port: int
    create: Call
    read: Call


def versions(venv: Path) -> dict[str, str]:
    """What is installed there, of what matters."""
    listed = subprocess.run(
        [venv / "bin" / "python", "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
    )
    found = {package["name"].lower(): package["version"] for package in json.loads(listed.stdout)}
    return {name: found[name] for name in _SHOWN if name in found}


@contextmanager
def mlflow(venv: Path, on: Servers, workers: int, records: int) -> Iterator[Target]:
    """Runs of one experiment: `runs/create` and `runs/get`."""
    port, name = free_port(), f"mlflow_{workers}"
    home = on.folder / name
    home.mkdir()
    url = on.database(name).replace("postgresql:", "postgresql+psycopg2:")
    command = ["env", "-C", str(home), str(venv / "bin" / "mlflow"), "server", "--backend-store-uri", url]
    command += ["--artifacts-destination", str(home), "--port", str(port), "--workers", str(workers)]
    base = f"http://127.0.0.1:{port}"
    tags = [{"key": "reason", "value": "gdpr_art_17"}]
    body = {"experiment_id": "0", "run_name": "case {n}", "start_time": 1, "tags": tags}
    create = Call("POST", ["/api/2.0/mlflow/runs/create"], 200, (), json.dumps(body))
    with process("MLflow", command, {"HOME": str(home)}, home / "log", f"{base}/health"):
        ids = [made["run"]["info"]["run_id"] for made in _made(base, create, records)]
        yield Target(port, create, Call("GET", [f"/api/2.0/mlflow/runs/get?run_id={each}" for each in ids], 200))


@contextmanager
def prefect(venv: Path, on: Servers, workers: int, records: int) -> Iterator[Target]:
    """Runs of one flow: `POST /flow_runs/` and `GET /flow_runs/{id}`."""
    port, name = free_port(), f"prefect_{workers}"
    home = on.folder / name
    home.mkdir()
    own = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": on.database(name).replace("postgresql:", "postgresql+asyncpg:"),
        "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
        "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
        "PREFECT_REDIS_MESSAGING_URL": f"unix://{on.redis.socket}?db={workers}",
        # Two processes would register the same blocks at once, and the slower one dies of it.
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    }
    command = ["env", "-C", str(home), str(venv / "bin" / "prefect"), "server", "start", "--no-ui", "--no-services"]
    command += ["--port", str(port), "--workers", str(workers)]
    base = f"http://127.0.0.1:{port}/api"
    # Its processes would all make the tables at once, and the slower ones die of it.
    tables = [venv / "bin" / "prefect", "server", "database", "upgrade", "-y"]
    subprocess.run(tables, env=environment_for(own), check=True, capture_output=True)
    with process("Prefect", command, own, home / "log", f"{base}/health"):
        flow = httpx.post(f"{base}/flows/", json={"name": "forget"}, timeout=60).json()["id"]
        body = {"flow_id": flow, "name": "case {n}", "tags": ["gdpr_art_17"], "state": {"type": "PENDING"}}
        create = Call("POST", ["/api/flow_runs/"], 201, (), json.dumps(body))
        ids = [made["id"] for made in _made(f"http://127.0.0.1:{port}", create, records)]
        yield Target(port, create, Call("GET", [f"/api/flow_runs/{each}" for each in ids], 200))


PEERS = {"mlflow": mlflow, "prefect": prefect}


def _made(base: str, create: Call, count: int) -> Iterator[Any]:
    with httpx.Client(base_url=base, timeout=60) as client:
        for number in range(count):
            body = create.body.replace("{n}", f"first-{number}")
            answer = client.post(create.paths[0], content=body, headers={"Content-Type": "application/json"})
            answer.raise_for_status()
            yield answer.json()
