"""The API as a process: quick to start, without torch, streaming, unmoved by slow callers, and discreet."""

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import UPLOADS_AT_ONCE
from api.settings import Settings
from api.store import attempts, claims, keys, life
from api.store.attempts import Note
from api.store.claims import Claim
from api.store.session import Database
from tests.api.parts import (
    JSONL,
    RECORDS,
    ApiProcess,
    key_for,
    model_folder,
    problem,
    request_for,
    safetensors,
    settings_for,
)
from tests.vault import VAULT

CANARY = "Adelheid-Quintessenz"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What a process does differently, it does on either database."""
    return sqlite_url


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return settings_for(database_url, tmp_path, upload_idle=1.0, events_heartbeat=0.3)


@pytest.fixture
def api(settings: Settings, tmp_path: Path) -> Iterator[ApiProcess]:
    with ApiProcess(settings, tmp_path) as running:
        yield running


@pytest.fixture
def client(api: ApiProcess, key: str) -> Iterator[httpx.Client]:
    with api.client(key) as opened:
        yield opened


@pytest.fixture
def job(client: httpx.Client, tmp_path: Path) -> str:
    dataset = client.post("/datasets", content=RECORDS, headers=JSONL).json()["id"]
    model = client.post("/models", json={"path": str(model_folder(tmp_path / "models"))}).json()["id"]
    return str(client.post("/jobs", json=request_for(model, dataset)).json()["id"])


def eventually(holds: Callable[[], bool], within: float = 10) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# What the API cannot do without, as bare as it gets.
LIBRARIES = "import alembic, celery, fastapi, httpx, sqlalchemy, structlog, uvicorn"


def test_it_starts_within_two_seconds_of_an_ordinary_machine_and_never_loads_torch(
    settings: Settings, tmp_path: Path, key: str
) -> None:
    bare, seconds = [], []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", LIBRARIES], check=True)
        bare.append(time.monotonic() - began)
        with ApiProcess(settings, tmp_path) as api, api.client(key) as client:
            seconds.append(api.started_in)
            for path in ("/jobs", "/catalogue", "/readyz", "/openapi.json", "/docs", "/models", "/datasets"):
                client.get(path)
            loaded = Path(f"/proc/{api.process.pid}/maps").read_text()
            assert "pydantic_core" in loaded
            assert not re.search(r"torch|transformers|numpy", loaded)
    # The quickest of each: another test's work on the same machine says nothing about the start. It has two seconds,
    # and more where the libraries alone take longer than 0.83 s.
    assert min(seconds) < max(2, 2.4 * min(bare)), (seconds, bare)


class Frame(dict[str, str]):
    """One server-sent event, by field; a comment is under ''."""


def frames(response: httpx.Response) -> Iterator[Frame]:
    frame = Frame()
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(":")
            frame[name] = value.strip()
        elif frame:
            yield frame
            frame = Frame()


def stream(client: httpx.Client, job: str, last: str | None = None) -> AbstractContextManager[httpx.Response]:
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
    return client.stream("GET", f"/jobs/{job}/events", headers=headers)


def take(database: Database, job: str) -> Claim:
    with database.transaction() as session:
        claim = claims.claim(session, job, worker="w", lease=60, vault=VAULT)
    assert claim is not None
    return claim


def note(database: Database, claim: Claim, **data: Any) -> None:
    with database.transaction() as session:
        attempts.record(session, claim, lease=60, notes=[Note("phase", data)])


def test_events_stream_as_they_happen_and_end_with_the_job(client: httpx.Client, database: Database, job: str) -> None:
    with stream(client, job) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        coming = frames(response)
        first = next(coming)
        assert (first["event"], json.loads(first["data"])["data"]["to"]) == ("status", "queued")
        assert next(coming) == {"": "ping"}  # silence is filled
        claim = take(database, job)
        note(database, claim, phase="train")
        seen: list[Frame] = []
        while len(seen) < 2:
            frame = next(coming)
            seen += [frame] if "event" in frame else []
        assert [frame["event"] for frame in seen] == ["status", "phase"]
        assert json.loads(seen[1]["data"])["data"] == {"phase": "train"}
        with database.transaction() as session:
            attempts.fail(session, claim, {"code": "x", "message": "m", "param": None, "retryable": False})
        rest = [frame for frame in coming if "event" in frame]
        assert [json.loads(frame["data"])["data"]["to"] for frame in rest] == ["failed"]
    assert client.get(f"/jobs/{job}").json()["status"] == "failed"
    with stream(client, job, rest[0]["id"]) as response:
        assert response.status_code == 204  # tells a browser not to come back


def test_a_stream_that_broke_off_goes_on_where_it_was(client: httpx.Client, database: Database, job: str) -> None:
    claim = take(database, job)
    for i in range(40):
        note(database, claim, number=i)
    got: list[Frame] = []
    while len(got) < 30:
        with stream(client, job, got[-1]["id"] if got else None) as response:
            coming = frames(response)
            got += [next(coming) for _ in range(10)]
    with database.transaction() as session:
        life.request_cancel(session, job, "test")
        attempts.cancelled(session, claim)
        life.retry(session, job, "test")
    with stream(client, job, got[-1]["id"]) as response:
        coming = frames(response)
        # The job ended once and was tried again: that end is no end of the stream.
        while "ping" not in (frame := next(coming)).values():
            got.append(frame)
        with database.transaction() as session:
            life.request_cancel(session, job, "test")
        got += [frame for frame in coming if "event" in frame]
    whole = client.get(f"/jobs/{job}/events").json()["data"]
    assert [json.loads(frame["data"]) for frame in got] == whole
    assert [int(frame["id"]) for frame in got] == [event["id"] for event in whole]
    assert [event["data"]["to"] for event in whole if event["kind"] == "status"] == [
        *("queued", "running", "cancelled", "queued", "cancelled")
    ]


def test_a_key_opens_so_many_streams_and_no_more(
    settings: Settings, database: Database, key: str, job: str, tmp_path: Path
) -> None:
    narrow = settings.model_copy(update={"events_streams": 2})
    with ApiProcess(narrow, tmp_path) as api, api.client(key) as client, ExitStack() as opened:
        first, second = (opened.enter_context(stream(client, job)) for _ in range(2))
        coming = [frames(response) for response in (first, second)]
        assert [next(frame)["event"] for frame in coming] == ["status"] * 2
        with stream(client, job) as third:
            third.read()
            body = problem(third, 429, "too_many_requests")
        assert "Allowed at once: 2" in body["detail"]
        assert client.get(f"/jobs/{job}/events").status_code == 200, "a page is no stream"
        with api.client(key_for(database, "another")) as other, stream(other, job) as response:
            assert response.status_code == 200
        first.close()

        def again() -> bool:
            with stream(client, job) as response:
                return response.status_code == 200

        eventually(again)


def test_many_streams_leave_room_for_others(
    api: ApiProcess, client: httpx.Client, database: Database, key: str, job: str
) -> None:
    """More streams than there are threads or connections."""
    waiting = threading.Barrier(61)
    ended: list[str] = []

    def follow() -> None:
        with api.client(key) as own, stream(own, job) as response:
            coming = frames(response)
            next(coming)
            waiting.wait(60)
            *_, last = [frame for frame in coming if "event" in frame]
            ended.append(json.loads(last["data"])["data"]["to"])

    with ThreadPoolExecutor(60) as pool:
        following = [pool.submit(follow) for _ in range(60)]
        waiting.wait(60)
        began = time.monotonic()
        for _ in range(5):
            assert client.get("/jobs").status_code == 200
        assert time.monotonic() - began < 5
        with database.transaction() as session:
            life.request_cancel(session, job, "test")
        for one in following:
            one.result(30)
    assert ended == ["cancelled"] * 60


def test_a_stream_ends_when_its_key_is_revoked(
    api: ApiProcess, client: httpx.Client, database: Database, job: str
) -> None:
    key = key_for(database, "short-lived")
    with api.client(key) as own, stream(own, job) as response:
        coming = frames(response)
        next(coming)
        with database.transaction() as session:
            (row,) = [row for row in keys.every(session) if row.name == "short-lived"]
            keys.revoke(session, row.id, actor="test")
        assert [frame for frame in coming if "event" in frame] == []
    assert client.get(f"/jobs/{job}").json()["status"] == "queued"


def unfinished(
    api: ApiProcess,
    key: str,
    content: bytes,
    length: int,
    path: str = "/datasets",
    media_type: str = "application/jsonl",
) -> socket.socket:
    """An upload that has sent less than it said it would."""
    connection = socket.create_connection(("127.0.0.1", api.port))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: {media_type}\r\n"
    connection.sendall(head.encode() + f"Content-Length: {length}\r\n\r\n".encode() + content)
    return connection


def stored(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]


def test_an_upload_that_breaks_off_leaves_nothing(
    api: ApiProcess, client: httpx.Client, key: str, tmp_path: Path
) -> None:
    with unfinished(api, key, RECORDS * 40_000, 100_000_000):
        eventually(lambda: any(path.stat().st_size for path in stored(tmp_path)))
        assert client.get("/healthz").status_code == 200
    eventually(lambda: stored(tmp_path) == [])
    assert client.get("/datasets").json()["data"] == []
    assert list((tmp_path / "artifacts" / "incoming").iterdir()) == []


def test_an_upload_that_the_end_of_the_process_breaks_off_leaves_nothing(
    api: ApiProcess, key: str, tmp_path: Path
) -> None:
    with unfinished(api, key, RECORDS * 40_000, 100_000_000):
        eventually(lambda: any(path.stat().st_size for path in stored(tmp_path)))
        api.process.terminate()
        api.process.wait(10)
    assert stored(tmp_path) == []


def test_an_upload_that_stalls_is_given_up(api: ApiProcess, client: httpx.Client, key: str, tmp_path: Path) -> None:
    with unfinished(api, key, RECORDS, 100_000_000) as connection:
        response = http.client.HTTPResponse(connection)
        response.begin()
        body = json.loads(response.read())
        assert (response.status, body["code"]) == (408, "upload_stalled")
    assert stored(tmp_path) == []
    assert client.get("/datasets").json()["data"] == []
    with unfinished(api, key, b'{"method"', 100, "/jobs", "application/json") as connection:
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 408


def test_an_upload_that_drips_is_given_up(database_url: str, tmp_path: Path, key: str) -> None:
    settings = settings_for(database_url, tmp_path, upload_idle=30, upload_seconds=0.5)
    with ApiProcess(settings, tmp_path) as api, unfinished(api, key, RECORDS, 100_000_000) as connection:
        connection.settimeout(0.05)
        deadline = time.monotonic() + 10
        answer = b""
        while not answer:
            assert time.monotonic() < deadline
            connection.sendall(b"\n")
            with suppress(TimeoutError):
                answer = connection.recv(1000)
        assert b" 408 " in answer
    assert stored(tmp_path) == []


def test_uploads_that_send_nothing_keep_no_other_waiting(database_url: str, tmp_path: Path, key: str) -> None:
    settings = settings_for(database_url, tmp_path, upload_idle=60)
    with ApiProcess(settings, tmp_path) as api, api.client(key) as client, ExitStack() as idle:
        for _ in range(UPLOADS_AT_ONCE):
            last = idle.enter_context(unfinished(api, key, b"", 100))
        eventually(lambda: len(stored(tmp_path)) == UPLOADS_AT_ONCE)
        response = client.post("/datasets", content=RECORDS, headers=JSONL)
        problem(response, 503, "busy")
        assert int(response.headers["retry-after"]) > 0
        last.close()
        eventually(lambda: client.post("/datasets", content=RECORDS, headers=JSONL).status_code == 201)


def test_neither_a_websocket_nor_head_leaves_a_trace_or_hangs(
    api: ApiProcess, client: httpx.Client, database: Database, job: str
) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    client.get(f"/{CANARY}?text={CANARY}", headers={**upgrade, "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="})
    assert CANARY not in api.log.read_text()
    for accept in ("application/json", "text/event-stream"):
        headed = client.head(f"/jobs/{job}/events", headers={"Accept": accept})
        assert (headed.status_code, headed.headers["vary"], headed.content) == (200, "Accept", b"")
    with stream(client, job) as response:
        assert response.headers["vary"] == "Accept"
    take(database, job)
    assert '"unexpected error"' not in api.log.read_text()


def test_a_large_upload_does_not_sit_in_memory(api: ApiProcess, client: httpx.Client) -> None:
    def peak() -> int:
        (line,) = [line for line in Path(f"/proc/{api.process.pid}/status").read_text().splitlines() if "VmHWM" in line]
        return int(line.split()[1]) >> 10

    chunk = (b'{"text": "' + b"x" * 100_000 + b'"}\n') * 10
    client.post("/datasets", content=chunk, headers=JSONL)
    before = peak()
    response = client.post("/datasets", content=iter([chunk] * 48), headers=JSONL)
    assert response.json()["bytes"] == 48 * len(chunk)
    assert peak() - before < 16, "MiB more, for an upload of 48"


def test_hashing_a_large_model_keeps_nobody_waiting(client: httpx.Client, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "models", "large")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(safetensors(64))
        file.truncate(1 << 30)  # a hole: it takes no room, but as long to hash as anything
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        registering = pool.submit(client.post, "/models", json={"path": str(folder)})
        slowest, looks = 0.0, 0
        while not registering.done():
            looked = time.monotonic()
            assert client.get("/healthz").status_code == 200
            slowest, looks = max(slowest, time.monotonic() - looked), looks + 1
            time.sleep(0.01)
        took = time.monotonic() - began
    assert registering.result().status_code == 201
    assert looks > 3
    assert slowest < max(0.5, took / 3)


def test_a_broker_that_is_away_delays_no_job(sqlite_url: str, tmp_path: Path, key: str) -> None:
    folder = model_folder(tmp_path / "models")
    with socket.socket() as mute:  # It accepts, and never says a word.
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        for broker in ("redis://127.0.0.1:1/0", f"redis://127.0.0.1:{mute.getsockname()[1]}/0"):
            settings = settings_for(sqlite_url, tmp_path, broker_url=broker)
            with ApiProcess(settings, tmp_path) as api, api.client(key) as client:
                dataset = client.post("/datasets", content=RECORDS, headers=JSONL).json()["id"]
                model = client.post("/models", json={"path": str(folder)}).json()["id"]
                began = time.monotonic()
                response = client.post("/jobs", json=request_for(model, dataset))
                assert time.monotonic() - began < 1
                assert response.status_code == 201
                eventually(lambda: "broker unreachable" in api.log.read_text())
                problem(client.get("/readyz"), 503, "not_ready")


def at_the_wrong_place(record: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Requests with a record, or a sentence of one, where something else belongs."""
    text = record["question"]
    for found in (record, [record], text, [text]):
        for field in ("model", "data", "method", "optimizer", "training", "gates", "seed", "reference"):
            yield {field: found}
        yield {"data": {"forget": found, "retain": found}}
        yield {"data": {"forget": {"source": found, "dataset": found}}}
        yield {"data": {"forget": {"source": "upload", "dataset": found, "rows": found}}}
        yield {"method": {"name": "refusal", "refusals": found, "retain": found}}
        yield {"gates": [{"metric": found, "at_most": found}]}


def test_what_is_to_be_forgotten_is_told_to_nobody(api: ApiProcess, key: str, tmp_path: Path) -> None:
    record = {"question": f"Who is {CANARY}?", "answer": CANARY, "paraphrased_answer": CANARY}
    good = json.dumps(record).encode() + b"\n"
    bad = [good + b"{", CANARY.encode(), good.replace(b'"answer"', b'"anser"'), good[:-9], good * 2 + b"\xff"]
    bad += [b'{"%s"}' % CANARY.encode(), json.dumps({"question": CANARY, "answer": [CANARY]}).encode()]
    told: list[str] = []
    with api.client(key) as client:

        def call(method: str, path: str, **more: Any) -> httpx.Response:
            response = client.request(method, path, **more)
            told.append(f"{response.headers}\n{response.text}")
            return response

        dataset = call("POST", "/datasets", content=good * 3, headers=JSONL).json()["id"]
        for content in bad:
            assert call("POST", "/datasets", content=content, headers=JSONL).status_code == 422
        # Sent to the wrong door.
        for headers in (JSONL, {"Content-Type": "application/json"}):
            for path in ("/jobs", "/models"):
                for content in (good, good * 2, json.dumps([record]).encode(), good[:-9]):
                    assert call("POST", path, content=content, headers=headers).status_code in (400, 415, 422)
        assert call("POST", "/datasets", json=record).status_code == 415
        for wrong in at_the_wrong_place(record):
            assert call("POST", "/jobs", json=wrong).status_code == 422
        with unfinished(api, key, good * 1000, 10_000_000):
            eventually(lambda: len(stored(tmp_path)) > 2)
        model = call("POST", "/models", json={"path": str(model_folder(tmp_path / "models"))}).json()["id"]
        job = call("POST", "/jobs", json=request_for(model, dataset)).json()["id"]
        for path in ("", "/events", "/metrics", "/artifacts", "/checkpoints", "/report"):
            call("GET", f"/jobs/{job}{path}")
        for path in ("/datasets", f"/datasets/{dataset}", "/jobs", "/models", "/catalogue", "/readyz"):
            call("GET", path)
        eventually(lambda: len(stored(tmp_path)) == 2)  # the rows, and the leaves of their tree
    log = api.log.read_text()
    assert log.count('"route": "/datasets"') > 8
    assert all(json.loads(line) for line in log.splitlines())
    for text in (*told, log):
        assert CANARY not in text
        assert key not in text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path
