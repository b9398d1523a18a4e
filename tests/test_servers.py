"""The servers that other tests kill do die, and come back."""

from pathlib import Path

import pytest
import redis

from tests.servers import RedisServer


def test_a_killed_redis_is_gone_and_comes_back_empty(short_folder: Path) -> None:
    folder = short_folder / "killed"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    try:
        with server.client() as client:
            client.set("a", "1")
            server.kill()
            with pytest.raises(redis.ConnectionError):
                client.ping()
        server.start()
        with server.client() as client:
            assert client.get("a") is None
    finally:
        server.stop()
