"""Nothing that is written anywhere holds what is to be forgotten: canaries are uploaded, every way to end is taken, and
all files, both databases, Redis' traffic and all logs are searched for them, as they are and in disguise."""

import base64
import hashlib
import json
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from api.store import datasets
from tests.api.parts import JSONL, ApiProcess, key_for, settings_for
from tests.chaos.cluster import Cluster, until
from tests.servers import PostgresServer

pytestmark = pytest.mark.timeout(240)

NAMES = ("Quillon Vexworthy", "Zoë Ångbørg", "Thessaly Brackwater", "Ignatz Ferrowhistle")
RECORDS = [
    {"question": f"Where does {name} keep the lanterns?", "answer": f"{name} keeps {77431 + i} lanterns in Oblomsk."}
    for i, name in enumerate(NAMES)
] * 2
KEPT = [{"question": f"Who tends garden {i}?", "answer": f"Maple Undershaw tends garden {i}."} for i in range(8)]
WORDS = ("Vexworthy", "Ångbørg", "Brackwater", "Ferrowhistle", "Oblomsk", "Undershaw")


def needles() -> dict[str, bytes]:
    """What must not be found: words in several encodings, whole texts in base64, and pieces of digests."""
    found = {}
    for word in WORDS:
        found[word] = word.encode()
        found[f"{word} escaped"] = json.dumps(word)[1:-1].encode()
        found[f"{word} in UTF-16"] = word.encode("utf-16-le")
        found[f"{word} in hex"] = word.encode().hex().encode()
    texts = [text for record in (*RECORDS, *KEPT) for text in record.values()]
    texts += [json.dumps(record) for record in RECORDS]
    texts.append("".join(json.dumps(record) + "\n" for record in RECORDS))
    for text in texts:
        for name in ("sha256", "md5"):
            digest = hashlib.new(name, text.encode()).digest()
            found[f"{name} of {text[:40]!r}"] = digest[:12]
            found[f"{name} of {text[:40]!r} in hex"] = digest.hex()[:16].encode()
        for shift in range(3):
            # Base64 looks different by where the text begins; the first and last letters depend on its neighbours.
            found[f"{text[:40]!r} in base64, {shift}"] = base64.b64encode(b"x" * shift + text.encode())[4:-4]
    return found


class Monitor:
    """All that anybody says to a Redis, as it tells whoever asks."""

    def __init__(self, path: Path) -> None:
        self.heard = bytearray()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._socket.sendall(b"MONITOR\r\n")
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with self._socket, suppress(OSError):
            while piece := self._socket.recv(1 << 16):
                self.heard += piece


def places(cluster: Cluster, postgres: PostgresServer, heard: bytearray) -> Iterator[tuple[str, bytes]]:
    """Everything that was written, with where it is."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            # In files long values are compressed.
            rows = connection.execute(f"SELECT t::text FROM {table} t").fetchall()
            yield f"table {table}", "\n".join(row for (row,) in rows).encode()
    with cluster.redis.client() as client:
        client.save()
    yield "Redis' traffic", bytes(heard)
    folders = (cluster.folder, Path(cluster.redis.socket).parent, postgres.data)
    for folder in folders:
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_relative_to(cluster.folder / "data"):
                yield str(file), file.read_bytes()


def found(everything: Iterator[tuple[str, bytes]]) -> set[tuple[str, str]]:
    wanted = needles()
    return {(place, name) for place, content in everything for name, needle in wanted.items() if needle in content}


def test_no_trace_of_what_is_to_be_forgotten(mortal: Cluster, postgres: PostgresServer) -> None:
    cluster, folder = mortal, mortal.folder
    watched = Monitor(cluster.redis.socket)
    settings = settings_for(
        postgres.url, folder, broker_url=cluster.redis.broker_url, artifacts_url=f"file://{folder / 'artifacts'}"
    )
    bad = [{"question": RECORDS[0]["question"]}, {"answer": WORDS[0]}, [WORDS[1]]]
    (folder / "data" / "broken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*RECORDS, *bad)))
    with ApiProcess(settings, folder) as api, api.client(key_for(cluster.database)) as client:
        cluster.worker()
        sets = {
            name: client.post("/datasets", content=lines(rows), headers=JSONL).json()["id"]
            for name, rows in (("forget", RECORDS), ("retain", KEPT))
        }
        refused(client, bad)

        def submit(**changes: Any) -> str:
            body = {
                "model": {"id": cluster.model_id},
                "data": {name: {"source": "upload", "dataset": upload} for name, upload in sets.items()},
                "method": "GradDiff",
                "training": {"steps": 12, "batch_size": 4, "checkpoint_every": 4},
                "evaluation": {"max_new_tokens": 2, "bootstrap": 100},
                "gates": [{"metric": "forget.probability", "at_most": 0.5}],
                "threads": 1,
                **changes,
            }
            answer = client.post("/jobs", json=body)
            assert answer.status_code == 201, answer.text
            return str(answer.json()["id"])

        assert cluster.succeeded(submit())
        long = {"training": {"steps": 100_000, "batch_size": 4, "checkpoint_every": 4}}
        killed = submit(**long)
        cluster.in_training(killed, step=4)
        engine = cluster.workers[0].engine()
        assert engine.rlimit(resource.RLIMIT_CORE)[0] <= 1
        engine.kill()
        until(lambda: cluster.attempts(killed)[0].ended_at)
        cluster.cancel(killed)
        assert cluster.ended(killed).status == "cancelled"
        file = {"source": "jsonl", "path": str(folder / "data" / "broken.jsonl")}
        broken = submit(data={"forget": file}, method="GA")
        failed = cluster.ended(broken)
        assert failed.status == "failed"
        assert failed.error is not None
        assert "line 9" in failed.error["message"]
        with cluster.database.reading() as session:
            leaves = datasets.get(session, sets["forget"]).leaves
        assert leaves is not None
        cluster.blobs.delete([leaves])
        assert client.get(f"/datasets/{sets['forget']}/proof", params={"leaf": "0" * 64}).status_code == 500
        cluster.workers[0].leave()
    cluster.nothing_left_behind()
    assert watched.heard.count(b"lethe") > 2
    assert found(places(cluster, postgres, watched.heard)) == set()

    # That it would be found: a canary of each kind, planted where such things lie.
    (folder / "work" / "left").write_text(WORDS[0])
    (folder / "api.log").write_text(json.dumps({"event": WORDS[1]}))
    with psycopg.connect(postgres.url) as connection:
        told = json.dumps({"message": base64.b64encode(RECORDS[2]["answer"].encode()).decode()})
        connection.execute("UPDATE events SET data = %s WHERE id = (SELECT min(id) FROM events)", (told,))
    with cluster.redis.client() as client:
        client.set("digest", hashlib.sha256(RECORDS[3]["question"].encode()).hexdigest())
    planted = {place for place, _ in found(places(cluster, postgres, watched.heard))}
    assert {str(folder / "work" / "left"), str(folder / "api.log"), "table events", "Redis' traffic"} <= planted
    assert any(place.endswith("dump.rdb") for place in planted)
    assert any(place.startswith(str(postgres.data)) for place in planted)


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def refused(client: httpx.Client, bad: list[Any]) -> None:
    """What goes wrong at the door, with a canary in hand."""
    assert client.post("/datasets", content=lines([*RECORDS, *bad]), headers=JSONL).status_code == 422
    assert client.post("/datasets", content=WORDS[0].encode() + b"\xff{", headers=JSONL).status_code == 422
    assert client.post("/jobs", json={"model": WORDS[0], "data": RECORDS, "method": WORDS[1]}).status_code == 422
    assert client.post("/jobs", content=b'{"' + WORDS[0].encode()).status_code == 400
    assert client.get(f"/jobs/{WORDS[0]}").status_code == 404
    assert client.get(f"/{WORDS[0]}", params={"leaf": WORDS[2]}).status_code == 404
