"""So many calls a minute: as many over all processes, counted on while Redis is away, and told to the caller."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api import rates
from api.app import create_app
from api.rates import Counts, Rate, rated
from api.settings import Settings
from api.store.session import Database
from tests.api.parts import NOBODY, bearer, key_for, problem, settings_for
from tests.servers import RedisServer

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def redis(short_folder: Path) -> Iterator[RedisServer]:
    folder = short_folder / f"rates-{time.monotonic_ns()}"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    yield server
    server.stop()


def rate(limit: str, broker_url: str) -> Rate:
    made = rated("test", limit, Counts(broker_url))
    assert made is not None
    return made


@pytest.mark.usefixtures("database_url")
def test_processes_together_make_as_many_calls_as_the_limit_says(redis: RedisServer) -> None:
    processes = [rate("300/hour", redis.broker_url) for _ in range(3)]

    def calls(process: Rate) -> int:
        return sum(process.take("key_a").allowed for _ in range(200))

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(calls, processes * 2)) == 300
    assert processes[0].take("key_b").allowed, "each has its own"
    refused = processes[0].take("key_a")
    assert (refused.allowed, refused.limit, refused.left, refused.window) == (False, 300, 0, 3600)
    assert 0 < refused.reset <= 3600


@pytest.mark.usefixtures("database_url")
def test_redis_is_asked_once_in_many_calls(redis: RedisServer) -> None:
    calling = rate("1200/hour", redis.broker_url)
    for _ in range(1200):
        assert calling.take("key_a").allowed
    assert not calling.take("key_a").allowed
    with redis.client() as client:
        asked = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert asked <= 1200 / 20 + 2
    assert rate("1/day", redis.broker_url).take("x").allowed, "a small limit is counted one by one"


@pytest.mark.usefixtures("database_url")
def test_without_redis_each_process_counts_and_goes_back(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rates, "ASKED_AGAIN_AFTER", 0.2)
    counting = rate("5/hour", redis.broker_url)
    assert counting.take("a").allowed
    redis.kill()
    began = time.monotonic()
    answers = [counting.take("b").allowed for _ in range(6)]
    assert answers == [True] * 5 + [False]
    assert time.monotonic() - began < 2
    said = capfd.readouterr()
    assert (said.out + said.err).count("in this process alone") == 1
    redis.start()
    time.sleep(0.3)
    assert counting.take("c").allowed
    with redis.client() as client:
        assert len(client.keys("*:c:*")) == 1


@pytest.fixture
def limited(database_url: str, tmp_path: Path) -> FastAPI:
    settings: Settings = settings_for(database_url, tmp_path, rate_limit="3/hour")
    assert settings.broker_url == NOBODY
    return create_app(settings)


def test_a_key_that_calls_too_often_is_told_when_to_come_back(limited: FastAPI, database: Database) -> None:
    one, other = key_for(database, "one"), key_for(database, "other")
    with TestClient(limited) as client:
        for left in (2, 1, 0):
            answer = client.get("/catalogue", headers=bearer(one))
            assert answer.status_code == 200
            assert answer.headers["ratelimit-policy"] == '"key";q=3;w=3600'
            assert answer.headers["ratelimit"].startswith(f'"key";r={left};t=')
        for method in ("GET", "HEAD"):
            refused = client.request(method, "/jobs", headers=bearer(one))
            assert refused.status_code == 429
            assert 0 < int(refused.headers["retry-after"]) <= 3600
            assert refused.headers["ratelimit"].startswith('"key";r=0;t=')
        assert "3 calls" in problem(client.get("/jobs", headers=bearer(one)), 429, "too_many_requests")["detail"]
        assert client.get("/jobs", headers=bearer(other)).status_code == 200
        for path in ("/healthz", "/docs", "/openapi.json"):
            assert "ratelimit" not in client.get(path).headers


def test_no_limit_counts_nothing(database: Database, database_url: str, tmp_path: Path) -> None:
    app = create_app(settings_for(database_url, tmp_path, rate_limit="", refusal_limit=""))
    with TestClient(app, headers=bearer(key_for(database))) as client:
        assert "ratelimit" not in client.get("/jobs").headers


@pytest.mark.parametrize("limit", ["many", "5", "0/minute", "5/fortnight", "-1/minute"])
def test_a_limit_that_is_none_is_named(database_url: str, tmp_path: Path, limit: str) -> None:
    with pytest.raises(ValueError, match=r"Allowed: such as 1200/minute, or empty"):
        settings_for(database_url, tmp_path, rate_limit=limit)
