"""The life of a request through the API: who may do what to it when, and whose jobs are seen."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import select, update
from starlette.testclient import TestClient

from api.settings import Settings
from api.store import audit, decisions, due, events
from api.store.keys import Scope
from api.store.session import Database
from api.store.tables import Dataset, Job, Principal
from tests.api.parts import bearer, key_for, problem, request_for, settings_for, uploaded

REASON = {"reason": "because"}


@pytest.fixture
def caller(app: FastAPI, database: Database) -> Callable[..., TestClient]:
    """Makes a client with a key of these scopes, for the principal of this name."""

    def made(name: str, *scopes: Scope) -> TestClient:
        return TestClient(app, headers=bearer(key_for(database, name, scopes=scopes)))

    return made


def submitted(client: TestClient, model: str, dataset: str, **changes: Any) -> str:
    response = client.post("/jobs", json=request_for(model, dataset, **changes))
    assert response.status_code == 201, response.text
    return str(response.headers["location"])


def put_into(database: Database, status: str, **values: Any) -> None:
    with database.transaction() as session:
        session.execute(update(Job).values(status=status, **values))


def noted(database: Database, location: str) -> list[tuple[str, str]]:
    """What was done to the job, each time by whom."""
    with database.reading() as session:
        names = {principal.id: principal.name for principal in session.scalars(select(Principal))}
        entries = audit.about(session, location.removeprefix("/jobs/"))
        assert all(entry.key_id for entry in entries)
        return [(entry.action, names[entry.actor]) for entry in entries]


class TestFourEyes:
    """With LETHE_FOUR_EYES."""

    @pytest.fixture
    def settings(self, database_url: str, tmp_path: Any) -> Settings:
        return settings_for(database_url, tmp_path, four_eyes=True)

    def test_another_principal_approves(
        self, caller: Callable[..., TestClient], database: Database, model: str
    ) -> None:
        asker = caller("asker", "jobs:write", "jobs:approve", "datasets:write")
        job = submitted(asker, model, uploaded(asker))
        assert asker.get(job).json()["status"] == "awaiting_approval"
        assert asker.get(job).json()["queue_position"] is None
        # However many keys the principal has.
        for own in (asker, caller("asker", "admin")):
            assert "four eyes" in problem(own.post(f"{job}/approve"), 403, "forbidden")["detail"]
        problem(caller("third", "jobs:read", "jobs:write").post(f"{job}/approve"), 403, "forbidden")
        approver = caller("second", "jobs:approve")
        approved = approver.post(f"{job}/approve").json()
        assert (approved["status"], approved["queue_position"]) == ("queued", 1)
        assert approved["approved_by"] not in (None, approved["principal"])
        assert approved["approved_at"] is not None
        assert "queued" in problem(approver.post(f"{job}/approve"), 409, "conflict")["detail"]
        assert noted(database, job) == [("job.created", "asker"), ("job.queued", "second")]

    def test_a_rejection_keeps_its_reason(self, client: TestClient, model: str, dataset: str) -> None:
        job = submitted(client, model, dataset)
        problem(client.post(f"{job}/reject"), 400, "invalid_json")
        problem(client.post(f"{job}/reject", json={}), 422, "invalid_request")
        problem(client.post(f"{job}/reject", json={"reason": ""}), 422, "invalid_request")
        problem(client.post(f"{job}/reject", json={"reason": "nul\0"}), 422, "invalid_spec")
        rejected = client.post(f"{job}/reject", json=REASON).json()
        assert (rejected["status"], rejected["error"]["code"]) == ("rejected", "rejected")
        assert rejected["error"]["message"] == "because"
        assert rejected["finished_at"] is not None
        for action in ("cancel", "retry"):
            assert "rejected" in problem(client.post(f"{job}/{action}"), 409, "conflict")["detail"]

    def test_cancel_and_retry_are_no_way_around_it(self, client: TestClient, model: str, dataset: str) -> None:
        job = submitted(client, model, dataset)
        assert client.post(f"{job}/cancel").json()["status"] == "cancelled"
        assert client.post(f"{job}/retry").json()["status"] == "awaiting_approval"
        problem(client.post(f"{job}/approve"), 403, "forbidden")

    @pytest.mark.parametrize("by", ["tests", "second"])
    def test_an_approval_counts_for_a_retry_unless_it_was_the_submitters_own(
        self,
        client: TestClient,
        caller: Callable[..., TestClient],
        database: Database,
        model: str,
        dataset: str,
        by: str,
    ) -> None:
        job = submitted(client, model, dataset)
        id_, second = job.removeprefix("/jobs/"), caller("second", "jobs:approve")
        own = client.get(job).json()["principal"]
        if by == "second":
            assert second.post(f"{job}/approve").status_code == 200
        else:
            # As while LETHE_FOUR_EYES was off.
            with database.transaction() as session:
                decisions.approve(session, id_, own, four_eyes=False)
        assert client.post(f"{job}/cancel").json()["status"] == "cancelled"
        again = client.post(f"{job}/retry").json()
        if by == "second":
            assert again["status"] == "queued"
            return
        assert (again["status"], again["approved_by"], again["approved_at"]) == ("awaiting_approval", None, None)
        assert second.post(f"{job}/approve").json()["approved_by"] not in (None, own)


def test_without_four_eyes_a_job_is_queued_and_needs_no_approval(client: TestClient, model: str, dataset: str) -> None:
    job = submitted(client, model, dataset)
    for action, body in (("approve", None), ("reject", REASON)):
        assert "queued" in problem(client.post(f"{job}/{action}", json=body), 409, "conflict")["detail"]


def test_a_due_date_is_extended_once_by_two_months(
    client: TestClient, database: Database, model: str, dataset: str
) -> None:
    job = submitted(client, model, dataset, received_at="2026-10-31T10:00:00+02:00")
    assert client.get(job).json()["due_at"] == "2026-11-30T08:00:00Z"
    problem(client.post(f"{job}/extend", json={}), 422, "invalid_request")
    extended = client.post(f"{job}/extend", json=REASON).json()
    assert (extended["due_at"], extended["extended"]) == ("2027-01-30T08:00:00Z", True)
    assert "once" in problem(client.post(f"{job}/extend", json=REASON), 409, "conflict")["detail"]
    other = submitted(client, model, dataset)
    client.post(f"{other}/cancel")
    assert "cancelled" in problem(client.post(f"{other}/extend", json=REASON), 409, "conflict")["detail"]
    with database.reading() as session:
        event = events.since(session, job.removeprefix("/jobs/"))[-1]
    assert (event.kind, event.data["reason"]) == ("extended", "because")
    assert noted(database, job)[-1] == ("job.extended", "tester")


@pytest.mark.parametrize("status", ["queued", "succeeded", "rejected"])
def test_a_legal_hold_is_possible_at_every_status(
    client: TestClient, database: Database, model: str, dataset: str, status: str
) -> None:
    job = submitted(client, model, dataset)
    put_into(database, status)
    assert "not under" in problem(client.post(f"{job}/release", json=REASON), 409, "conflict")["detail"]
    held = client.post(f"{job}/hold", json=REASON).json()
    assert (held["held"], held["status"]) == (True, status)
    assert "since" in problem(client.post(f"{job}/hold", json=REASON), 409, "conflict")["detail"]
    assert client.post(f"{job}/release", json=REASON).json()["held"] is False
    assert [action for action, _ in noted(database, job)] == ["job.created", "job.held", "job.released"]


def test_what_was_destroyed_cannot_be_retried(client: TestClient, database: Database, model: str, dataset: str) -> None:
    job = submitted(client, model, dataset)
    put_into(database, "failed")
    assert client.get(job).json()["data_destroyed"] is False
    with database.transaction() as session:
        session.execute(update(Dataset).values(destroyed_at=datetime.now(UTC)))
    assert client.get(job).json()["data_destroyed"] is True
    assert client.get("/jobs").json()["data"][0]["data_destroyed"] is True
    problem(client.post(f"{job}/retry"), 409, "data_destroyed")
    assert client.get(job).json()["status"] == "failed"


@pytest.mark.parametrize(
    ("received", "taken"),
    [
        (timedelta(days=-3000), True),
        (timedelta(minutes=-1), True),
        (timedelta(hours=1), False),
        (timedelta(days=-4000), False),
    ],
)
def test_a_request_came_in_by_now_and_not_ages_ago(
    client: TestClient, model: str, dataset: str, received: timedelta, taken: bool
) -> None:
    at = (datetime.now(UTC) + received).isoformat()
    response = client.post("/jobs", json=request_for(model, dataset, received_at=at))
    if taken:
        assert response.status_code == 201
        assert response.json()["late"] is (received < timedelta(days=-31))
    else:
        told = problem(response, 422, "invalid_spec")
        assert told["param"] == "received_at"
        assert f'(got "{at}")' in told["detail"]


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_at_the_end_of_the_calendar_is_refused(client: TestClient, model: str, dataset: str, at: str) -> None:
    problem(client.post("/jobs", json=request_for(model, dataset, received_at=at)), 422, "invalid_spec")


def test_late_and_soon_late_jobs_are_listed_and_counted(
    client: TestClient, database: Database, model: str, dataset: str
) -> None:
    today = datetime.now(UTC)
    ids = {}
    for name, days in (("late", 40), ("soon", 27), ("fine", 1), ("ended", 40)):
        at = (today - timedelta(days=days)).isoformat()
        ids[name] = submitted(client, model, dataset, received_at=at, priority="low").removeprefix("/jobs/")
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == ids["ended"]).values(status="succeeded"))

    def found(**query: str) -> set[str]:
        return {job["id"] for job in client.get("/jobs", params=query).json()["data"]}

    assert found(due="late") == {ids["late"]}
    assert found(due="soon") == {ids["soon"]}
    assert found(due="late", status="succeeded") == found(priority="high") == set()
    assert found(priority="low", status="succeeded") == {ids["ended"]}
    counted = client.get("/jobs/counts").json()
    assert (counted["late"], counted["soon"]) == (1, 1)
    assert counted["status"] == {
        **dict.fromkeys(("awaiting_approval", "running", "failed", "cancelled", "rejected"), 0),
        "queued": 3,
        "succeeded": 1,
    }
    assert {job["id"]: job["late"] for job in client.get("/jobs").json()["data"]} == {
        ids[name]: name == "late" for name in ids
    }


def routes_of_one_job(app: FastAPI) -> Iterator[tuple[str, str]]:
    for path, methods in app.openapi()["paths"].items():
        if path.startswith("/jobs/{job_id}"):
            for method in methods:
                yield method, path.replace("{name}", "report.json")


def test_another_principals_job_is_as_if_it_were_not_there(
    app: FastAPI, client: TestClient, caller: Callable[..., TestClient], model: str, dataset: str
) -> None:
    """On every route below a job, whatever the key may do to jobs of its own."""
    theirs = submitted(client, model, dataset).removeprefix("/jobs/")
    stranger = caller("stranger", "jobs:write", "datasets:write", "models:write")
    routes = list(routes_of_one_job(app))
    assert len(routes) >= 14
    for method, path in routes:
        answers = []
        for job in (theirs, "job_" + "0" * 26):
            body = {"json": REASON} if method == "post" else {}
            response = stranger.request(method, path.replace("{job_id}", job), **body)
            answers.append((response.status_code, response.json()["detail"].replace(job, "")))
        # Scopes are looked at first, and tell nothing of the job.
        assert answers[0] == answers[1], path
        assert answers[0][0] in (403, 404), path
        assert answers[0][0] == 404 or "scope jobs:approve" in answers[0][1], path
    assert stranger.get("/jobs").json()["data"] == []
    assert sum(stranger.get("/jobs/counts").json()["status"].values()) == 0
    own = submitted(stranger, model, uploaded(stranger))
    assert [f"/jobs/{job['id']}" for job in stranger.get("/jobs").json()["data"]] == [own]
    assert stranger.get(f"{own}/events").status_code == 200


@pytest.mark.parametrize("scope", ["jobs:read", "jobs:approve", "audit:read", "admin"])
def test_some_scopes_see_every_job(
    client: TestClient, caller: Callable[..., TestClient], model: str, dataset: str, scope: Scope
) -> None:
    job = submitted(client, model, dataset)
    other = caller("other", scope)
    assert other.get(job).status_code == other.get(f"{job}/metrics").status_code == 200
    assert len(other.get("/jobs").json()["data"]) == 1
    # Seeing is not doing, except for an administrator.
    writes = other if scope == "admin" else caller("other", scope, "jobs:write")
    if scope != "admin":
        problem(other.post(f"{job}/cancel"), 403, "forbidden")
        for action in ("cancel", "retry", "extend"):
            refused = problem(writes.post(f"{job}/{action}", json=REASON), 403, "forbidden")
            assert "another principal's" in refused["detail"]
    else:
        assert writes.post(f"{job}/cancel").json()["status"] == "cancelled"


def test_who_reads_only_submits_nothing(caller: Callable[..., TestClient], model: str, dataset: str) -> None:
    reader = caller("reader", "jobs:read", "audit:read", "jobs:approve")
    refused = problem(reader.post("/jobs", json=request_for(model, dataset)), 403, "forbidden")
    assert "jobs:write" in refused["detail"]


def test_the_same_idempotency_key_is_one_job_by_whichever_key_of_the_principal(
    caller: Callable[..., TestClient], model: str, dataset: str
) -> None:
    body, header = request_for(model, dataset), {"Idempotency-Key": "case-7"}
    # With jobs:read, a principal may name the sets of others.
    answers = [
        caller(name, "jobs:write", "jobs:read").post("/jobs", json=body, headers=header)
        for name in ("one", "one", "another")
    ]
    assert [answer.status_code for answer in answers] == [201, 200, 201]
    assert len({answer.json()["id"] for answer in answers}) == 2


def test_dates_are_in_calendar_months() -> None:
    for received, expected in (
        ("2026-01-31", "2026-02-28"),
        ("2028-01-31", "2028-02-29"),
        ("2026-12-15", "2027-01-15"),
        ("2026-03-31", "2026-04-30"),
    ):
        assert due.of(datetime.fromisoformat(received)) == datetime.fromisoformat(expected)
    assert due.months_after(datetime(2026, 12, 31, tzinfo=UTC), 2) == datetime(2027, 2, 28, tzinfo=UTC)
