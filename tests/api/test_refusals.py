"""Every 401 and 403 is in the audit log, with nothing that a caller wrote freely, and is no way to fill it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from api.app import create_app
from api.store import audit, keys, principals
from api.store.records import AuditEntry
from api.store.session import Database
from tests.api.parts import SECRET, ApiProcess, bearer, key_for, problem, settings_for

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

WRITTEN = "Adelheid-Quintessenz"


def refused(database: Database) -> list[AuditEntry]:
    with database.reading() as session:
        return list(reversed(audit.page(session, action="access.refused", limit=200)[0]))


@pytest.fixture
def open_app(database_url: str, tmp_path: Path) -> Iterator[TestClient]:
    app = create_app(settings_for(database_url, tmp_path))

    def elsewhere() -> None:
        raise HTTPException(403, "some library says no")

    app.add_api_route("/elsewhere/{name}", elsewhere)
    with TestClient(app) as client:
        yield client


def mistakes(text: str) -> Iterator[tuple[str, str, str]]:
    """What may be sent in place of a key's text: a name, the header, and the reason that is noted."""
    half = len(text) // 2
    yield "nothing", "", "no_key"
    yield "no scheme", text, "no_key"
    yield "another scheme", f"Basic {text}", "no_key"
    yield "first half", f"Bearer {text[:half]}", "malformed"
    yield "second half", f"Bearer {text[half:]}", "malformed"
    yield "truncated", f"Bearer {text[:-1]}", "malformed"
    yield "wrong checksum", f"Bearer {text[:-1]}{'0' if text[-1] != '0' else '1'}", "malformed"
    yield "one letter of the secret", f"Bearer {text[:20]}{'0' if text[20] != '0' else '1'}{text[21:]}", "malformed"
    yield "in capitals", f"Bearer {text.upper()}", "malformed"
    yield "very long", f"Bearer {text}{'a' * 60_000}", "malformed"
    yield "not ASCII", f"Bearer {text[:-1]}é", "malformed"
    yield "a text", f"Bearer {WRITTEN}", "malformed"
    forged = text[:15] + "0" * 32
    yield "a right checksum", f"Bearer {forged}{keys._checksum(forged)}", "unknown"
    stranger = "lethe_00000000_" + "0" * 32
    yield "an unknown prefix", f"Bearer {stranger}{keys._checksum(stranger)}", "unknown"


def test_a_text_that_is_no_key_is_refused_and_noted(open_app: TestClient, database: Database) -> None:
    text = key_for(database)
    cases = list(mistakes(text))
    for name, header, _ in cases:
        sent = {"Authorization": header.encode("latin-1")} if header else {}
        body = problem(open_app.get(f"/jobs?reference={WRITTEN}", headers=sent), 401, "unauthorized")
        assert body["param"] == "Authorization", name
    found = refused(database)
    assert [entry.facts["reason"] for entry in found] == [reason for _, _, reason in cases]
    for entry in found:
        assert (entry.actor, entry.key_id, entry.subject) == ("anonymous", None, "api")
        assert (entry.facts["status"], entry.facts["code"]) == (401, "unauthorized")
        assert (entry.facts["method"], entry.facts["route"]) == ("GET", "/jobs")
        assert entry.facts["request_id"].startswith("req_")
        assert WRITTEN not in str(entry.facts)
        assert text not in str(entry.facts)
    assert [entry.facts["prefix"] for entry in found[-2:]] == [text[6:14], "00000000"]


def test_keys_that_were_shut_out_are_told_apart_in_the_log_alone(open_app: TestClient, database: Database) -> None:
    texts = {
        "revoked": key_for(database, "revoked"),
        "expired": key_for(database, "expired", expires_at=datetime.now(UTC)),
        "disabled": key_for(database, "disabled"),
    }
    with database.transaction() as session:
        rows = {row.name: row for row in keys.every(session)}
        keys.revoke(session, rows["revoked"].id, actor="test")
        principals.disable(session, rows["disabled"].principal_id, actor="test")
    details = {
        problem(open_app.get("/jobs", headers=bearer(text)), 401, "unauthorized")["detail"] for text in texts.values()
    }
    assert len(details) == 1
    assert [entry.facts["reason"] for entry in refused(database)] == list(texts)
    for name, entry in zip(texts, refused(database), strict=True):
        assert (entry.facts["key"], entry.facts["principal"]) == (rows[name].id, rows[name].principal_id)


def test_a_key_that_lacks_a_scope_is_refused_by_name(open_app: TestClient, database: Database) -> None:
    with database.transaction() as session:
        key, text = keys.create(session, SECRET.encode(), name="reader", actor="test", scopes=["jobs:read"])
    body = problem(open_app.get("/audit", headers=bearer(text)), 403, "forbidden")
    assert body["detail"] == "This call needs the scope audit:read; this key has: jobs:read."
    (entry,) = refused(database)
    assert (entry.actor, entry.key_id, entry.facts["reason"]) == (key.principal_id, key.id, "needs audit:read")
    assert entry.facts["route"] == "/audit"


def test_a_refusal_of_a_library_is_noted_too(open_app: TestClient, database: Database) -> None:
    problem(open_app.get(f"/elsewhere/{WRITTEN}"), 403, "http_error")
    (entry,) = refused(database)
    assert (entry.facts["status"], entry.facts["route"]) == (403, "/elsewhere/{name}")


def test_a_flood_is_answered_429_and_counted_in_one_entry(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    text = key_for(database)
    app = create_app(settings_for(database_url, tmp_path, refusal_limit="5/hour"))
    with TestClient(app) as client:
        assert client.get("/jobs", headers=bearer(text)).status_code == 200
        answers = [client.get("/jobs") for _ in range(5)] + [client.get("/models") for _ in range(20)]
        assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 20
        assert "refused lately" in problem(answers[-1], 429, "too_many_requests")["detail"]
        assert 0 < int(answers[-1].headers["retry-after"]) <= 3600
        assert client.get("/jobs", headers=bearer(text)).status_code == 200, "whoever shares the address gets in"
        assert len(refused(database)) == 5
    *single, together = refused(database)
    assert len(single) == 5
    assert (together.actor, together.facts["code"]) == ("anonymous", "too_many_refusals")
    assert (together.facts["count"], together.facts["routes"]) == (20, ["/models"])


def test_a_flood_of_made_up_keys_does_not_reach_the_database(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    known, fresh = key_for(database, "known"), key_for(database, "fresh")
    app = create_app(settings_for(database_url, tmp_path, refusal_limit="3/hour"))
    asked: list[str] = []
    event.listen(app.state.service.database._readers, "before_cursor_execute", lambda *given: asked.append(given[2]))

    def made_up(number: int) -> str:
        text = f"lethe_{number:08}_" + "0" * 32
        return text + keys._checksum(text)

    with TestClient(app) as client:
        assert client.get("/jobs", headers=bearer(known)).status_code == 200
        app.state.service.known_keys.forget()
        answers = [client.get("/jobs", headers=bearer(made_up(number))) for number in range(4)]
        assert [answer.status_code for answer in answers] == [401] * 3 + [429]
        asked.clear()
        for number in range(4, 24):
            body = problem(client.get("/jobs", headers=bearer(made_up(number))), 429, "too_many_requests")
            assert "refused lately" in body["detail"]
        assert asked == []
        assert client.get("/jobs", headers=bearer(known)).status_code == 200, "whoever was let in before gets in"
        assert client.get("/jobs", headers=bearer(fresh)).status_code == 429
        elsewhere = TestClient(app, client=("10.0.0.1", 1))
        assert elsewhere.get("/jobs", headers=bearer(fresh)).status_code == 200
        assert client.get("/jobs", headers=bearer(fresh)).status_code == 200
    together = refused(database)[-1]
    assert (together.facts["count"], together.facts["routes"]) == (22, ["/jobs"])


def test_many_addresses_do_not_fill_the_log_either(database: Database, database_url: str, tmp_path: Path) -> None:
    app = create_app(settings_for(database_url, tmp_path, refusal_limit="1/hour"))
    with TestClient(app):
        for number in range(60):
            stranger = TestClient(app, client=(f"10.0.0.{number}", 1))
            assert stranger.get("/jobs").status_code == (401 if number < 20 else 429)
        neighbours: list[Any] = [TestClient(app, client=(f"2001:db8::{n}", 1)).get("/jobs") for n in range(3)]
        assert {answer.status_code for answer in neighbours} == {429}
    *single, own, together = refused(database)
    assert len(single) == 20
    assert {own.facts["count"], together.facts["count"]} == {41, 2}


def test_no_flood_of_strangers_hides_whoever_has_a_key(database: Database, database_url: str, tmp_path: Path) -> None:
    scopes: list[keys.Scope] = ["jobs:read"]
    texts = [key_for(database, f"insider {number}", scopes=scopes) for number in range(22)]
    app = create_app(settings_for(database_url, tmp_path, refusal_limit="1/hour"))
    with TestClient(app):
        for number in range(120):
            TestClient(app, client=(f"10.0.0.{number}", 1)).get("/jobs")
        answers = [TestClient(app).get("/audit", headers=bearer(text)).status_code for text in texts]
        assert answers == [403] * 20 + [429] * 2, "keys have a total of their own"
        assert TestClient(app).get("/audit", headers=bearer(texts[0])).status_code == 429
    with database.reading() as session:
        names = {key.name: key.id for key in keys.every(session)}
    told = {entry.key_id: entry.facts for entry in refused(database) if entry.key_id}
    assert told.keys() == set(names.values()), "those beyond it are counted by name"
    assert told[names["insider 21"]]["count"] == 1
    assert told[names["insider 21"]]["routes"] == ["/audit"]


def test_behind_a_proxy_callers_are_told_apart_where_it_is_trusted(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    del database
    settings = settings_for(database_url, tmp_path, refusal_limit="1/hour")

    def answers(trusted: str) -> list[int]:
        with ApiProcess(settings, tmp_path, FORWARDED_ALLOW_IPS=trusted) as api:
            said = [{"X-Forwarded-For": f"spoofed, {address}"} for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1")]
            return [httpx.get(f"{api.url}/jobs", headers=headers).status_code for headers in said]

    assert answers("127.0.0.0/8") == [401, 401, 429]
    assert answers("192.0.2.9") == [401, 429, 429]


def test_without_a_database_a_refusal_stands(database: Database, tmp_path: Path) -> None:
    key_for(database)
    app = create_app(settings_for(f"sqlite:///{tmp_path}/nowhere/lethe.db", tmp_path))
    with TestClient(app) as client:
        problem(client.get("/jobs"), 401, "unauthorized")
