"""The API is killed between the commit of a job and the ring that tells of it."""

import os
import secrets
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from api.store import keys
from api.store.tables import Job
from tests.chaos import invariants
from tests.chaos.cluster import ROOT, Cluster, until
from tests.vault import MASTER

SECRET = secrets.token_hex(32)


def _mute(folder: Path) -> socket.socket:
    """A broker that takes connections and never answers."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "mute.sock"))
    listening.listen(16)
    return listening


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_job_whose_api_died_before_it_rang_is_run(cluster: Cluster, noop: dict[str, str]) -> None:
    with cluster.database.transaction() as session:
        secret = keys.create(session, SECRET.encode(), name="caller", actor="test")[1]
    socket_folder = cluster.redis.socket.parent
    port = _free_port()
    environment = os.environ | {
        "LETHE_DATABASE_URL": cluster.database_url,
        "LETHE_BROKER_URL": f"redis+socket://{socket_folder / 'mute.sock'}",
        "LETHE_BROKER_TIMEOUT": "60",
        "LETHE_ARTIFACTS_URL": f"file://{cluster.folder / 'artifacts'}",
        "LETHE_KEY_SECRET": SECRET,
        "LETHE_MASTER_KEY": MASTER,
    }
    command = [sys.executable, "-m", "uvicorn", "api.app:create_app", "--factory", "--port", str(port), "--ws", "none"]
    log = cluster.folder / "api.log"
    with _mute(socket_folder), log.open("wb") as output:
        api = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            _ask_and_kill(cluster, api, f"http://127.0.0.1:{port}", secret)
        finally:
            api.kill()
            api.wait()
    with cluster.redis.client() as client:
        assert client.llen("lethe") == 0
    with cluster.database.reading() as session:
        (job_id,) = session.scalars(select(Job.id)).all()
    cluster.worker(**noop)
    assert cluster.succeeded(job_id), log.read_text()
    assert cluster.reports(job_id) == 1
    invariants.hold(cluster.database, cluster.blobs)


def _ask_and_kill(cluster: Cluster, api: subprocess.Popen[bytes], url: str, secret: str) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {secret}"}, timeout=60) as client:
        until(lambda: _healthy(client), 60)
        body = {
            "model": cluster.model_id,
            "data": {"forget": {"source": "upload", "dataset": cluster.sets["forget"]}},
            "method": "GA",
        }

        def ask() -> None:
            try:
                client.post("/jobs", json=body)
            except httpx.TransportError:
                return

        asking = threading.Thread(target=ask)
        asking.start()
        # From the moment that the job is there the API waits for its broker, and dies waiting.
        until(lambda: _there(cluster), 30)
        api.kill()
        asking.join()


def _healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def _there(cluster: Cluster) -> bool:
    with cluster.database.reading() as session:
        return session.scalar(select(Job.id)) is not None
