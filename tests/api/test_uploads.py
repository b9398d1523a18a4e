"""Uploads: every bad line is named and never quoted, every limit holds, and the records are sealed."""

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from api.app import create_app
from api.errors import BadLines
from api.settings import Settings
from api.store import datasets, keys
from api.store.blobs import Blobs
from api.store.session import Database, open_database
from api.store.vault import Vault
from api.upload import LISTED, Lines
from core.errors import DataError
from core.report import merkle
from tests.api.parts import JSONL, RECORDS, SECRET, bearer, key_for, lines, problem, settings_for
from tests.vault import VAULT

CANARY = "Adelheid-Quintessenz"


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_upload_is_sealed_and_never_comes_back(client: TestClient, database: Database, tmp_path: Path) -> None:
    content = lines({"question": f"Who is {CANARY}?", "answer": CANARY}, {"text": CANARY}) + b"\r\n  \n"
    response = client.post("/datasets?name=case 7", content=content, headers=JSONL)
    assert response.status_code == 201
    answer = response.json()
    assert response.headers["location"] == f"/datasets/{answer['id']}"
    assert (answer["name"], answer["rows"], answer["bytes"]) == ("case 7", 2, len(content))
    commitment_key = bytes.fromhex(answer.pop("commitment_key"))
    assert client.get(response.headers["location"]).json() == answer
    assert client.get("/datasets").json()["data"] == [answer]
    assert CANARY not in response.text
    with database.reading() as session:
        row = datasets.get(session, answer["id"])
    assert row.leaves is not None
    stored = files(tmp_path / "artifacts")
    assert {file.name for file in stored} == {row.blob, row.leaves}
    assert not any(CANARY.encode() in file.read_bytes() for file in stored)
    Blobs(f"file://{tmp_path}/artifacts").get(row.blob, tmp_path / "plain", VAULT.unwrap(row.key, row.id))
    assert (tmp_path / "plain").read_bytes() == content
    records = [json.loads(line) for line in content.splitlines() if line.strip()]
    leaves = [merkle.leaf(commitment_key, merkle.canonical(record)) for record in records]
    assert answer["commitment"] == merkle.Tree(leaves).root().hex()
    assert commitment_key not in (row.key, VAULT.unwrap(row.key, row.id))


def test_a_record_is_proven_by_whoever_has_the_key(client: TestClient) -> None:
    records = [{"text": f"record {i}", "extra": {"b": i, "a": [1.5, None]}} for i in range(7)]
    made = client.post("/datasets", content=lines(*records), headers=JSONL).json()
    key = bytes.fromhex(made["commitment_key"])
    for index, record in enumerate(records):
        leaf = merkle.leaf(key, merkle.canonical(record))
        answer = client.get(f"/datasets/{made['id']}/proof", params={"leaf": leaf.hex()}).json()
        assert (answer["root"], answer["rows"], answer["index"]) == (made["commitment"], 7, index)
        assert merkle.holds(merkle.Proof.model_validate(answer), leaf)
    for wrong in (merkle.leaf(key, merkle.canonical({"text": "record 9"})), merkle.leaf(bytes(32), b"{}")):
        refused = client.get(f"/datasets/{made['id']}/proof", params={"leaf": wrong.hex()})
        assert problem(refused, 404, "not_found")["param"] == "leaf"
    problem(client.get(f"/datasets/{made['id']}/proof", params={"leaf": "ab"}), 422, "invalid_request")


def test_the_same_records_have_one_fingerprint_in_any_order(client: TestClient, database: Database) -> None:
    rows = [{"question": f"Q{i}", "answer": "A"} for i in range(5)]
    written = [lines(*rows), lines(*rows[::-1]).replace(b": ", b":"), lines(*rows, rows[0]), lines(*rows[:4])]
    made = [client.post("/datasets", content=content, headers=JSONL).json()["id"] for content in written]
    with database.reading() as session:
        found = [datasets.get(session, dataset).fingerprint for dataset in made]
    assert found[0] == found[1]
    assert len(set(found)) == 3
    other = Vault(b"another deployment").fingerprint()
    for row in rows:
        other.add(merkle.canonical(row))
    assert other.hex() not in found


def test_sets_of_others_are_not_there_for_a_key_that_sees_its_own_alone(
    client: TestClient, database: Database, dataset: str
) -> None:
    with database.transaction() as session:
        text = keys.create(session, SECRET.encode(), name="another", actor="test", scopes=["datasets:write"])[1]
    client.headers |= bearer(text)
    own = client.post("/datasets", content=RECORDS, headers=JSONL).json()["id"]
    assert [found["id"] for found in client.get("/datasets").json()["data"]] == [own]
    assert client.get(f"/datasets/{own}").status_code == 200
    problem(client.get(f"/datasets/{dataset}"), 404, "not_found")
    problem(client.get(f"/datasets/{dataset}/proof", params={"leaf": "0" * 64}), 404, "not_found")


def test_the_same_records_leave_different_traces(client: TestClient) -> None:
    first, second = (client.post("/datasets", content=RECORDS, headers=JSONL).json() for _ in range(2))
    assert first["commitment"] != second["commitment"]


def test_every_bad_line_is_named_and_none_is_quoted(client: TestClient, tmp_path: Path) -> None:
    content = b"\n".join(
        [
            b'{"question": "Q", "answer": "A"}',
            b'{"question": "%s"}' % CANARY.encode(),
            b"",
            b'{"question": "%s", "answer": 3}' % CANARY.encode(),
            b"%s" % CANARY.encode(),
            b'["%s"]' % CANARY.encode(),
            b'{"question": "%s\xff", "answer": "A"}' % CANARY.encode(),
            b'{"text": ""}',
            b'{"%s": 1}' % CANARY.encode(),
            b'{"text": "\\ud800"}',
            b"[" * 100_000,
            b'{"text": ' + b"9" * 5000 + b"}",
        ]
    )
    body = problem(client.post("/datasets", content=content, headers=JSONL), 422, "invalid_data")
    assert [fault["line"] for fault in body["errors"]] == [2, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert body["count"] == 10
    assert (body["errors"][0]["param"], body["errors"][0]["message"]) == ("answer", "field 'answer' is missing")
    assert CANARY not in str(body)
    assert files(tmp_path / "artifacts") == []
    assert client.get("/datasets").json()["data"] == []


def test_the_list_of_bad_lines_is_bounded(client: TestClient) -> None:
    body = problem(client.post("/datasets", content=b"x\n" * 5000, headers=JSONL), 422, "invalid_data")
    assert (len(body["errors"]), body["count"]) == (LISTED, 5000)
    assert f"first {LISTED}" in body["detail"]
    described = client.get("/openapi.json").json()["paths"]["/datasets"]["post"]["description"]
    assert f"first {LISTED} bad lines are named" in " ".join(described.split())


LIMITS = {"upload_max_bytes": 1000, "upload_max_rows": 5, "upload_max_row": 100}


@pytest.fixture
def tight(sqlite_url: str, tmp_path: Path) -> TestClient:
    database = open_database(sqlite_url)
    client = TestClient(create_app(settings_for(sqlite_url, tmp_path, **LIMITS)), headers=bearer(key_for(database)))
    database.close()
    return client


def test_limits_hold_to_the_byte_and_leave_nothing(tight: TestClient, tmp_path: Path) -> None:
    row = b'{"text": "%s"}'
    fits = row % (b"x" * (100 - len(row) + 2))
    assert len(fits) == 100
    assert tight.post("/datasets", content=fits, headers=JSONL).status_code == 201
    kept = files(tmp_path / "artifacts")
    long = problem(tight.post("/datasets", content=b"\n" + fits + b" \n{}", headers=JSONL), 422, "invalid_data")
    assert [(fault["line"], fault["message"].split()[0]) for fault in long["errors"]] == [(2, "longer"), (3, "none")]
    assert tight.post("/datasets", content=b'{"text":"t"}\n' * 5, headers=JSONL).status_code == 201
    rows = problem(tight.post("/datasets", content=b'{"text":"t"}\n' * 6, headers=JSONL), 413, "too_large")
    assert "5 records" in rows["detail"]
    exact = b'{"text":"t"}' + b" " * 87 + b"\n"
    full = (exact + b" " * 99 + b"\n") * 5
    assert len(full) == 1000
    assert tight.post("/datasets", content=full, headers=JSONL).status_code == 201
    for content in (full + b" ", iter([full, b" "])):  # with Content-Length, and chunked
        problem(tight.post("/datasets", content=content, headers=JSONL), 413, "too_large")
    assert len(files(tmp_path / "artifacts")) == len(kept) + 2 * 2


@given(
    rows=st.lists(
        st.sampled_from([b"", b" \r", b'{"text": "t"}', b'{"text": "t"}\r', b"bad", b"x" * 101]), max_size=12
    ),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    size=st.integers(1, 64),
)
def test_where_chunks_end_changes_nothing(rows: list[bytes], cuts: list[int], size: int) -> None:
    content = b"\n".join(rows)
    places = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    chunks = iter([content[a:b] for a, b in itertools.pairwise(places)] + [b""])
    bad = [i for i, row in enumerate(rows, start=1) if row == b"bad" or len(row) > 100]
    good = sum(row.startswith(b"{") for row in rows)
    limits = Settings.model_construct(upload_max_bytes=10_000, upload_max_rows=100, upload_max_row=100)
    taken: list[Any] = []
    stream = Lines(limits, lambda: next(chunks), taken.append)
    read = b""

    def read_all() -> None:
        nonlocal read
        while piece := stream.read(size):
            assert len(piece) <= size
            read += piece

    if bad:
        with pytest.raises(BadLines) as refused:
            read_all()
        assert [fault["line"] for fault in refused.value.lines] == bad
    elif not good:
        with pytest.raises(DataError):
            read_all()
    else:
        read_all()
        assert (read, stream.rows) == (content, good)
        assert taken == [{"text": "t"}] * good


def test_missing_paraphrases_are_a_warning(client: TestClient) -> None:
    whole = {"question": "Q", "answer": "A", "paraphrased_answer": "P", "perturbed_answer": ["X"]}
    without = client.post("/datasets", content=RECORDS, headers=JSONL).json()["warnings"]
    assert "truth ratio" in without[0]
    assert client.post("/datasets", content=lines(whole), headers=JSONL).json()["warnings"] == []


def test_what_a_killed_process_left_is_removed_at_the_next_start(app: FastAPI, tmp_path: Path) -> None:
    old, live = (tmp_path / "artifacts" / "incoming" / name for name in ("old", "live"))
    for folder in (old, live):
        folder.mkdir(parents=True)
        (folder / "blob").write_bytes(b"half")
    for path in (old / "blob", old):
        os.utime(path, (time.time() - 10_000,) * 2)
    with TestClient(app):
        assert not old.exists()
        assert live.exists()


def test_a_set_is_destroyed_on_request_once_nothing_needs_it(
    client: TestClient, database: Database, dataset: str, model: str, tmp_path: Path
) -> None:
    asked = {"model": {"id": model}, "data": {"forget": {"source": "upload", "dataset": dataset}}, "method": "GA"}
    job = client.post("/jobs", json=asked).json()["id"]
    refused = problem(client.delete(f"/datasets/{dataset}"), 409, "conflict")
    assert job in refused["detail"]
    client.post(f"/jobs/{job}/cancel")
    with database.transaction() as session:
        own = keys.create(session, SECRET.encode(), name="another", actor="test", scopes=["datasets:write"])[1]
        seeing = keys.create(
            session, SECRET.encode(), name="seeing", actor="test", scopes=["datasets:write", "jobs:read"]
        )[1]
    problem(client.delete(f"/datasets/{dataset}", headers=bearer(own)), 404, "not_found")
    problem(client.delete(f"/datasets/{dataset}", headers=bearer(seeing)), 403, "forbidden")
    gone = client.delete(f"/datasets/{dataset}")
    assert gone.status_code == 200
    assert gone.json()["destroyed_at"] is not None
    assert client.delete(f"/datasets/{dataset}").json() == gone.json() == client.get(f"/datasets/{dataset}").json()
    assert files(tmp_path / "artifacts") == []
    problem(client.get(f"/datasets/{dataset}/proof", params={"leaf": "0" * 64}), 409, "data_destroyed")
    problem(client.post(f"/jobs/{job}/retry"), 409, "data_destroyed")
    again = problem(client.post("/jobs", json=asked), 422, "invalid_spec")
    assert again["param"] == "data.forget.dataset"
    assert "destroyed" in again["detail"]
    problem(client.get(f"/jobs/{job}/destruction"), 404, "report_missing")
