"""The doorbell carries an id and nothing else, and a broker in trouble costs little time and no job."""

import base64
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.queue import ENOUGH_UNREAD, QUEUE, Queue
from api.store import sweep
from api.store.session import open_database
from tests.api.parts import JSONL, RECORDS, bearer, key_for, model_folder, request_for, settings_for
from tests.servers import RedisServer


@pytest.fixture
def own_redis(short_folder: Path) -> Iterator[RedisServer]:
    """A Redis that a test may stop."""
    folder = short_folder / f"own-{time.monotonic_ns()}"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    yield server
    server.kill()


def messages(server: RedisServer, count: int = 1) -> list[dict[str, object]]:
    """So many messages; the API rings a moment after it has answered, and one more than these would be seen too."""
    deadline = time.monotonic() + 5
    with server.client() as client:
        while client.llen("lethe") < count and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        found = client.lrange("lethe", 0, -1)
        assert isinstance(found, list)
        return [json.loads(message) for message in found]


def test_the_queue_gets_the_id_once_and_nothing_else(sqlite_url: str, tmp_path: Path, own_redis: RedisServer) -> None:
    database = open_database(sqlite_url)
    settings = settings_for(sqlite_url, tmp_path, broker_url=own_redis.broker_url)
    with TestClient(create_app(settings), headers=bearer(key_for(database))) as client:
        dataset = client.post("/datasets", content=RECORDS, headers=JSONL).json()["id"]
        model = client.post("/models", json={"path": str(model_folder(tmp_path / "models"))}).json()["id"]
        body = request_for(model, dataset, reference="the case number")
        job = client.post("/jobs", json=body, headers={"Idempotency-Key": "once"}).json()["id"]
        client.post("/jobs", json=body, headers={"Idempotency-Key": "once"})
        (message,) = messages(own_redis)
        assert json.loads(base64.b64decode(str(message["body"])))[:2] == [[job], {}]
        headers = message["headers"]
        assert isinstance(headers, dict)
        assert headers["task"] == "lethe.run"
        assert not {"the case number", model, dataset} & set(json.dumps(message).split('"'))
        client.post(f"/jobs/{job}/cancel")
        client.post(f"/jobs/{job}/retry")
        assert len(messages(own_redis, 2)) == 2
        # Redis goes away: the job is taken all the same, and the sweep will ring for it.
        own_redis.stop()
        silent = client.post("/jobs", json=body)
        assert silent.status_code == 201
    with database.transaction() as session:
        assert silent.json()["id"] in sweep.waiting(session, older_than=0)
    database.close()


def test_a_backlog_that_nobody_reads_is_rung_for_no_further(own_redis: RedisServer) -> None:
    """Until somebody reads: then the next ring is written again."""
    queue = Queue(own_redis.broker_url, timeout=5)
    jobs = 3 * ENOUGH_UNREAD

    def ring_all() -> int:
        for number in range(jobs):
            queue.ring_soon(f"job_{number}")
        queue.ring_soon("the last one")
        with own_redis.client() as client:
            before, now = -1, 0
            while before != now:
                time.sleep(0.3)
                before, now = now, int(client.llen(QUEUE))
            return now

    assert ENOUGH_UNREAD <= ring_all() < ENOUGH_UNREAD + 200
    with own_redis.client() as client:
        client.delete(QUEUE)
    assert ENOUGH_UNREAD <= ring_all() < ENOUGH_UNREAD + 200
    queue.close()


def test_a_broker_in_trouble_is_given_up_quickly(own_redis: RedisServer) -> None:
    queue = Queue(own_redis.broker_url, timeout=0.3)
    assert queue.ring("job_1")
    assert queue.reachable()
    assert own_redis.process is not None
    own_redis.process.send_signal(signal.SIGSTOP)  # It accepts, but never answers.
    began = time.monotonic()
    assert not queue.ring("job_2")
    assert not queue.reachable()
    assert time.monotonic() - began < 2
    own_redis.kill()
    began = time.monotonic()
    assert not queue.ring("job_3")
    assert not queue.reachable()
    assert time.monotonic() - began < 2
    own_redis.start()
    assert queue.ring("job_4")
    assert len(messages(own_redis)) == 1
    with own_redis.client() as client:
        client.config_set("requirepass", "changed meanwhile")
    queue.close()
    queue = Queue(own_redis.broker_url, timeout=0.3)
    assert not queue.ring("job_5")
    assert not queue.reachable()
    queue.close()
