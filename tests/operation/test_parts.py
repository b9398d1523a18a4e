"""The parts as whoever runs them sees them: one request found in the logs of all three, numbers for Prometheus that are
real after a real job, and an orderly end on SIGTERM."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from api.settings import Settings
from api.store.records import Delivery
from api.store.session import Database, now, open_database
from benchmarks import noop_engine
from tests.api.parts import (
    JSONL,
    MASTER,
    RECORDS,
    ROOT,
    ApiProcess,
    bearer,
    key_for,
    model_folder,
    problem,
    request_for,
    settings_for,
)
from tests.api.receiver import Receiver

pytestmark = pytest.mark.timeout(180)
# uvicorn ends in order, and then by the signal that ended it, as programs in a shell do.
IN_ORDER = (0, -signal.SIGTERM)


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What is tested here is no database's."""
    return sqlite_url


@pytest.fixture
def settings(database_url: str, broker_url: str, tmp_path: Path) -> Settings:
    return settings_for(
        database_url, tmp_path, broker_url=broker_url, webhooks_deliver=True, webhook_allow=["127.0.0.0/8"]
    )


@pytest.fixture
def key(database: Database) -> str:
    return key_for(database)


@pytest.fixture
def api(settings: Settings, tmp_path: Path) -> Iterator[ApiProcess]:
    with ApiProcess(settings, tmp_path) as running:
        yield running


@pytest.fixture
def client(api: ApiProcess, key: str) -> Iterator[httpx.Client]:
    with api.client(key) as opened:
        yield opened


class WorkerProcess:
    """A worker with an engine that computes nothing, its log in a file and its metrics on a port of its own."""

    def __init__(self, settings: Settings, folder: Path, seconds: float = 0.3) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.log = folder / "worker.log"
        environment = os.environ | {
            "LETHE_EMBEDDED": "true",
            "LETHE_DATABASE_URL": settings.database_url,
            "LETHE_BROKER_URL": settings.broker_url,
            "LETHE_ARTIFACTS_URL": settings.artifacts_url,
            "LETHE_MASTER_KEY": MASTER,
            "LETHE_WORK_DIR": str(folder / "work"),
            "LETHE_SIGNING_KEY_FILE": str(folder / "signing.pem"),
            "LETHE_POLL_SECONDS": "0.5",
            "LETHE_ENGINE_PYTHON": str(noop_engine.program(folder, seconds=seconds)),
            "LETHE_METRICS_PORT": str(self.port),
        }
        command = [sys.executable, "-m", "celery", "-A", "worker.app", "--quiet", "worker", "--pool=threads"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--concurrency=1", "--without-gossip", "--without-mingle"],
                cwd=ROOT, env=environment, stdout=log, stderr=log,
            )  # fmt: skip

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def numbers(self) -> dict[str, Any]:
        return parsed(httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=10).text)


def parsed(text: str) -> dict[str, float]:
    """Every sample, by its name and labels as Prometheus writes them."""
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def submitted(client: httpx.Client, tmp_path: Path, **changes: Any) -> httpx.Response:
    dataset = client.post("/datasets", content=RECORDS, headers=JSONL).json()["id"]
    model = client.post("/models", json={"path": str(model_folder(tmp_path / "models"))}).json()["id"]
    response = client.post("/jobs", json=request_for(model, dataset, **changes), headers={"X-Request-Id": "case-7.one"})
    assert response.status_code == 201, response.text
    return response


def ended(client: httpx.Client, job: str, seconds: float = 60) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while True:
        found: dict[str, Any] = client.get(f"/jobs/{job}").json()
        if found["status"] not in ("queued", "running"):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def lines(log: Path, **having: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [row for row in rows if all(row.get(name) == value for name, value in having.items())]


def test_one_request_is_found_in_all_parts_and_its_numbers_are_real(
    api: ApiProcess, client: httpx.Client, settings: Settings, tmp_path: Path
) -> None:
    with Receiver() as receiver, WorkerProcess(settings, tmp_path) as worker:
        hook = client.post("/webhooks", json={"url": receiver.url, "kinds": ["job.succeeded"]}).json()
        job = submitted(client, tmp_path).json()["id"]
        assert ended(client, job)["status"] == "succeeded"
        deadline = time.monotonic() + 20
        while not (told := lines(worker.log, request_id="case-7.one", event="attempt ended")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        numbers = worker.numbers()
        (message,) = receiver.wait(1)
    # The message names what came of it.
    said = message.verified(hook["secret"])["data"]
    (made,) = [row["id"] for row in client.get("/models").json()["data"] if row["id"] != said["model"]]
    assert (said["id"], said["output_model"]) == (job, made)
    assert said["verdict"] == client.get(f"/jobs/{job}").json()["verdict"]
    # By the id of one request: the API's line, the worker's of the attempt, the engine's milestones.
    assert lines(api.log, request_id="case-7.one", route="/jobs", status=201)
    assert told[0]["job"] == job
    engine = lines(worker.log, request_id="case-7.one", part="engine")
    assert {line["job"] for line in engine} == {job}
    assert {line["attempt"] for line in engine} == {1}
    assert len({line["engine"] for line in engine}) == 1
    assert [line["event"] for line in engine if "done" in line["event"]] == ["engine: done"]
    assert [line["phase"] for line in engine if line["event"] == "engine: phase"]
    # The worker's numbers.
    assert numbers["lethe_attempt_seconds_count outcome=succeeded"] == 1
    assert 0 < numbers["lethe_attempt_seconds_sum outcome=succeeded"] < 60
    phases = {name: value for name, value in numbers.items() if name.startswith("lethe_phase_seconds_count")}
    assert len(phases) == len([line for line in engine if line["event"] == "engine: phase"])
    assert numbers["lethe_jobs_running"] == 0
    assert "lethe_lease_age_seconds" in numbers
    # The API's numbers.
    numbers = parsed(client.get("/metrics").raise_for_status().text)
    assert numbers["lethe_http_request_seconds_count method=POST route=/jobs status=201"] == 1
    assert numbers["lethe_http_request_seconds_count method=GET route=/jobs/{job_id} status=200"] >= 1
    assert numbers["lethe_jobs status=queued"] == 0
    assert {"lethe_oldest_queued_seconds", "lethe_lease_overdue_seconds", "lethe_audit_unsealed"} <= numbers.keys()


def test_the_queue_is_counted_and_nobody_without_a_key_is_told(
    api: ApiProcess, client: httpx.Client, key: str, tmp_path: Path
) -> None:
    job = submitted(client, tmp_path).json()["id"]
    with httpx.Client(base_url=api.url) as nobody:
        problem(nobody.get("/metrics"), 401, "unauthorized")
    numbers = parsed(client.get("/metrics", headers=bearer(key)).text)
    assert numbers["lethe_jobs status=queued"] == 1
    assert numbers["lethe_oldest_queued_seconds"] > 0
    assert (numbers["lethe_jobs_late"], numbers["lethe_jobs_due_soon"]) == (0, 0)
    assert job not in client.get("/metrics").text


def test_several_processes_answer_for_all(settings: Settings, tmp_path: Path, key: str) -> None:
    """Each counts what it answered itself; whichever is asked adds up."""
    (tmp_path / "numbers").mkdir()
    opened = settings.model_copy(update={"metrics_open": True})
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "numbers"), "WEB_CONCURRENCY": "2"}
    with ApiProcess(opened, tmp_path, **environment) as api:
        for _ in range(40):
            httpx.get(f"{api.url}/jobs", headers=bearer(key)).raise_for_status()
        numbers = parsed(httpx.get(f"{api.url}/metrics").raise_for_status().text)
    assert numbers["lethe_http_request_seconds_count method=GET route=/jobs status=200"] == 40
    assert len(list((tmp_path / "numbers").glob("histogram_*.db"))) == 2
    assert numbers["lethe_jobs status=queued"] == 0


def test_sigterm_ends_the_api_in_order(
    api: ApiProcess, client: httpx.Client, tmp_path: Path, database: Database
) -> None:
    """With an event stream open, an upload under way, and a message on its way to a receiver that takes its time."""
    job = submitted(client, tmp_path).json()["id"]
    kept = stored(tmp_path)
    upload = socket.create_connection(("127.0.0.1", api.port))
    head = f"POST /datasets HTTP/1.1\r\nHost: x\r\n{_header(client)}\r\nContent-Type: application/jsonl\r\n"
    upload.sendall(head.encode() + b"Content-Length: 100000\r\n\r\n" + RECORDS)
    with Receiver(slow=1.5) as receiver, upload:
        hook = client.post("/webhooks", json={"url": receiver.url}).json()["id"]
        sent = client.post(f"/webhooks/{hook}/ping").json()["id"]
        receiver.wait(1)
        with client.stream("GET", f"/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as stream:
            coming = stream.iter_lines()
            assert next(coming).startswith(("id:", "event:", "data:"))
            began = time.monotonic()
            api.process.send_signal(signal.SIGTERM)
            rest = list(coming)  # raises where the stream is cut off instead of ended
            assert time.monotonic() - began < 10
        assert rest
        assert api.process.wait(30) in IN_ORDER
    with database.reading() as session:
        assert session.get_one(Delivery, sent).status == "delivered"
    log = api.log.read_text()
    assert "Traceback" not in log
    assert stored(tmp_path) == kept  # and nothing of the upload


def stored(folder: Path) -> set[Path]:
    return {path for path in (folder / "artifacts").rglob("*") if path.is_file()}


def _header(client: httpx.Client) -> str:
    return f"Authorization: {client.headers['authorization']}"


def test_sigterm_ends_a_worker_in_order_and_its_job_waits_for_the_next(
    client: httpx.Client, settings: Settings, tmp_path: Path
) -> None:
    with WorkerProcess(settings, tmp_path, seconds=60.0) as worker:
        job = submitted(client, tmp_path).json()["id"]
        deadline = time.monotonic() + 60
        while not lines(worker.log, part="engine", event="engine: phase"):
            assert time.monotonic() < deadline, worker.log.read_text()
            time.sleep(0.05)
        running = worker.numbers()
        assert running["lethe_jobs_running"] == 1
        assert running["lethe_engine_memory_bytes"] > 1 << 20
        assert 0 <= running["lethe_lease_age_seconds"] < 30
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(40) == 0
    assert client.get(f"/jobs/{job}").json()["status"] == "queued"


def test_up_ends_all_its_parts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "api.cli", "up", "--home", str(tmp_path / "home"), "--port", "0"]
    lethe = "from api.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", lethe, *command[3:]],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as up:  # fmt: skip
        assert up.stdout is not None
        for line in up.stdout:
            if "Ctrl-C stops" in line:
                break
        up.send_signal(signal.SIGTERM)
        assert up.wait(60) in (0, 130)
    database = open_database(f"sqlite:///{tmp_path}/home/lethe.db")
    with database.transaction() as session:  # nobody holds it
        session.execute(update(Delivery).values(next_at=now(session)))
    database.close()
    home = str(tmp_path / "home").encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes()
        except OSError:
            continue
        assert b"LETHE_DATABASE_URL=sqlite:///" + home not in told, (process / "cmdline").read_bytes()
