"""Webhooks from the event to the receiver: who is told what, retries, the dead-letter list, replay, and several
processes at once."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from api.settings import Settings
from api.store import attempts, claims, keys, life, outbox
from api.store.audit import about
from api.store.outbox import KEPT, KINDS, LEASE, WAITS, Outcome
from api.store.records import Delivery, Event
from api.store.session import Database, now
from api.store.tables import Job, Principal, Status
from api.store.vault import Vault
from api.webhooks.deliverer import AT_ONCE, AT_ONCE_EACH, AT_ONCE_OF_ONE, Deliverer
from api.webhooks.targets import Guard
from tests.api.parts import MASTER, SECRET, ApiProcess, bearer, key_for, problem, request_for, settings_for, uploaded
from tests.api.receiver import Receiver

LOOPBACK = ["127.0.0.0/8"]
ERROR = {"code": "diverged", "message": "Adelheid-Quintessenz was 7", "param": None, "retryable": False}


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return settings_for(database_url, tmp_path, webhook_allow=LOOPBACK)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as started:
        yield started


@pytest.fixture
def _delivering(database: Database) -> Iterator[None]:
    """Messages are delivered, as in each process of the API."""
    made = Deliverer(database, Vault(MASTER.encode()), Guard(LOOPBACK))
    made.start()
    yield
    made.close()


def hook(client: TestClient, url: str, *kinds: str) -> dict[str, Any]:
    response = client.post("/webhooks", json={"url": url, "kinds": list(kinds)})
    assert response.status_code == 201, response.text
    assert response.headers["location"] == f"/webhooks/{response.json()['id']}"
    body: dict[str, Any] = response.json()
    return body


def key_with(database: Database, name: str, *scopes: keys.Scope) -> dict[str, str]:
    with database.transaction() as session:
        return bearer(keys.create(session, SECRET.encode(), name=name, actor="test", scopes=scopes)[1])


def deliveries(client: TestClient, hook_id: str, **query: str) -> list[dict[str, Any]]:
    response = client.get(f"/webhooks/{hook_id}/deliveries", params=query)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["data"]
    return found


def due_now(database: Database) -> None:
    """Every waiting message's time has come."""
    with database.transaction() as session:
        past = now(session) - timedelta(seconds=1)
        session.execute(update(Delivery).where(Delivery.status == "pending").values(next_at=past))


@pytest.mark.usefixtures("_delivering")
def test_a_jobs_whole_life_is_told_signed_and_thin(
    client: TestClient, database: Database, receiver: Receiver, model: str, dataset: str
) -> None:
    made = hook(client, receiver.url)
    assert made["secret"].startswith("whsec_")
    job = client.post("/jobs", json=request_for(model, dataset, reference="case 7")).json()["id"]
    with database.transaction() as session:
        claim = claims.claim(session, job, worker="w", lease=60, vault=Vault(MASTER.encode()))
        assert claim is not None
        attempts.fail(session, claim, ERROR)
    got = receiver.wait(3)
    told = {message.verified(made["secret"])["type"]: message for message in got}
    assert told.keys() == {"job.queued", "job.running", "job.failed"}
    said = told["job.failed"].verified(made["secret"])["data"]
    assert {name: said[name] for name in ("id", "status", "verdict", "reference", "model", "error")} == {
        "id": job, "status": "failed", "verdict": None, "reference": "case 7", "model": model, "error": "diverged",
    }  # fmt: skip
    assert len({message.headers["webhook-id"] for message in got}) == 3
    for message in got:
        assert b"Quintessenz" not in message.body
        assert b"spec" not in message.body
        with pytest.raises(Exception, match="No matching signature"):
            message.verified("whsec_" + "A" * 44)
    assert made["secret"] not in client.get(f"/webhooks/{made['id']}").text
    assert "secret" not in client.get("/webhooks").json()["data"][0]


def test_a_message_is_there_exactly_if_its_event_is(
    client: TestClient, database: Database, model: str, dataset: str
) -> None:
    made = hook(client, "http://127.0.0.1:9/")
    job = client.post("/jobs", json=request_for(model, dataset)).json()["id"]

    class Undone(Exception):
        pass

    def cancel_and_undo() -> None:
        with database.transaction() as session:
            life.request_cancel(session, job, "test")
            raise Undone

    with pytest.raises(Undone):
        cancel_and_undo()
    assert [d["kind"] for d in deliveries(client, made["id"])] == ["job.queued"]
    client.post(f"/jobs/{job}/cancel")
    assert [d["kind"] for d in deliveries(client, made["id"])] == ["job.cancelled", "job.queued"]


def test_each_hears_of_what_it_may_see_and_asked_for(
    client: TestClient, database: Database, model: str, dataset: str
) -> None:
    writer = key_with(database, "writer", "jobs:write", "datasets:write")
    reader = key_with(database, "reader", "jobs:write", "jobs:read")
    url = "http://127.0.0.1:9/"
    hooks = {
        name: client.post("/webhooks", json={"url": url, "kinds": kinds}, headers=headers).json()["id"]
        for name, headers, kinds in (
            ("own", writer, []),
            ("all", reader, []),
            ("admin", {}, []),
            ("ends", reader, ["job.cancelled"]),
        )
    }
    own = client.post("/jobs", json=request_for(model, uploaded(client, writer)), headers=writer).json()["id"]
    other = client.post("/jobs", json=request_for(model, dataset)).json()["id"]
    client.post(f"/jobs/{other}/cancel")

    def told(name: str) -> list[tuple[str, str]]:
        found = deliveries(client, hooks[name])
        return [(d["kind"], d["payload"]["data"]["id"]) for d in reversed(found)]

    assert told("own") == [("job.queued", own)]
    assert told("all") == told("admin") == [("job.queued", own), ("job.queued", other), ("job.cancelled", other)]
    assert told("ends") == [("job.cancelled", other)]
    # Another's webhook is not there, and a key that may read only has none.
    for call, path in (("GET", ""), ("DELETE", ""), ("POST", "/ping"), ("GET", "/deliveries")):
        problem(client.request(call, f"/webhooks/{hooks['all']}{path}", headers=writer), 404, "not_found")
    delivery = deliveries(client, hooks["all"])[0]["id"]
    problem(client.post(f"/deliveries/{delivery}/replay", headers=writer), 404, "not_found")
    assert {h["id"] for h in client.get("/webhooks", headers=writer).json()["data"]} == {hooks["own"]}
    assert {h["id"] for h in client.get("/webhooks").json()["data"]} == set(hooks.values())
    problem(client.get("/webhooks", headers=key_with(database, "looks", "jobs:read")), 403, "forbidden")
    # A principal that was disabled is told nothing more.
    with database.transaction() as session:
        session.execute(update(Principal).where(Principal.name == "reader").values(disabled_at=now(session)))
    client.post(f"/jobs/{own}/cancel")
    assert told("own")[-1] == ("job.cancelled", own)
    assert len(told("all")) == 3


def test_messages_about_everybody_are_shown_to_those_alone_who_may_see_everybody(
    client: TestClient, database: Database, model: str, dataset: str
) -> None:
    weak = bearer(key_for(database, "team", scopes=["jobs:write"]))
    strong = bearer(key_for(database, "team", scopes=["jobs:write", "jobs:read"]))
    url = {"url": "http://127.0.0.1:9/"}
    every, own = (client.post("/webhooks", json=url, headers=headers).json()["id"] for headers in (strong, weak))
    job = client.post("/jobs", json=request_for(model, dataset, reference="Case Doe")).json()["id"]
    problem(client.get(f"/jobs/{job}", headers=weak), 404, "not_found")
    body = problem(client.get(f"/webhooks/{every}/deliveries", headers=weak), 403, "forbidden")
    assert "needs the scope jobs:read" in body["detail"]
    (told,) = client.get(f"/webhooks/{every}/deliveries", headers=strong).json()["data"]
    assert told["payload"]["data"]["reference"] == "Case Doe"
    with database.transaction() as session:
        session.execute(update(Delivery).values(status="dead"))
    refused = client.post(f"/deliveries/{told['id']}/replay", headers=weak)
    assert "Case Doe" not in str(problem(refused, 403, "forbidden"))
    with database.reading() as session:
        assert session.get_one(Delivery, told["id"]).status == "dead"
    assert client.post(f"/deliveries/{told['id']}/replay", headers=strong).status_code == 202
    assert client.get(f"/webhooks/{own}/deliveries", headers=weak).json()["data"] == []
    assert client.post(f"/webhooks/{every}/ping", headers=weak).status_code == 202


def test_messages_go_a_month_after_their_last_try(client: TestClient, database: Database) -> None:
    made = hook(client, "http://127.0.0.1:9/")
    ids = [client.post(f"/webhooks/{made['id']}/ping").json()["id"] for _ in range(4)]
    with database.transaction() as session:
        month = now(session) - KEPT
        for id_, status, at in zip(
            ids,
            ("dead", "delivered", "pending", "dead"),
            (month - timedelta(1), month - timedelta(1), month - timedelta(1), month + timedelta(1)),
            strict=True,
        ):
            session.execute(update(Delivery).where(Delivery.id == id_).values(status=status, next_at=at))
    for limit, left in ((1, 3), (1000, 2)):
        with database.transaction() as session:
            outbox.prune(session, limit=limit)
        assert len(deliveries(client, made["id"])) == left
    assert {delivery["id"] for delivery in deliveries(client, made["id"])} == set(ids[2:])


def test_what_cannot_be_a_webhook_is_refused(client: TestClient) -> None:
    for url in ("https://10.0.0.1/", "http://[::1]/", "https://localhost.invalid/", "https://2130706433/"):
        body = problem(client.post("/webhooks", json={"url": url}), 422, "invalid_spec")
        assert "url" in body["detail"]
    body = problem(
        client.post("/webhooks", json={"url": "http://127.0.0.1/", "kinds": ["job.lost"]}), 422, "invalid_request"
    )
    assert "job.cancelled" in body["detail"]
    problem(client.post("/webhooks", json={"url": "http://127.0.0.1/", "secret": "mine"}), 422, "invalid_request")
    for _ in range(20):
        hook(client, "http://127.0.0.1:9/")
    problem(client.post("/webhooks", json={"url": "http://127.0.0.1/"}), 409, "conflict")


def test_a_receiver_that_fails_is_tried_again_later_and_then_given_up(client: TestClient, database: Database) -> None:
    courier = Deliverer(database, Vault(MASTER.encode()), Guard(LOOPBACK))

    def one_try() -> dict[str, Any]:
        with database.transaction() as session:
            tried = outbox.take(session)
        assert tried is not None
        courier._carry_out(tried)
        (found,) = deliveries(client, made["id"])
        return found

    with Receiver(answers=lambda _: 503) as broken:
        made = hook(client, broken.url)
        sent = client.post(f"/webhooks/{made['id']}/ping").json()
        for tries, wait in enumerate(WAITS, 1):
            found = one_try()
            assert (found["status"], found["tries"], found["answered"]) == ("pending", tries, 503)
            assert found["error"] == "answered 503"
            with database.reading() as session:
                left = (session.get_one(Delivery, sent["id"]).next_at - now(session)).total_seconds()
                assert outbox.any_due(session) is False
            assert wait - 5 < left <= wait * 1.2
            due_now(database)
        found = one_try()
        assert (found["status"], found["tries"]) == ("dead", len(WAITS) + 1)
        assert deliveries(client, made["id"], status="dead") == [found]
        assert deliveries(client, made["id"], status="pending") == []
        assert {got.headers["webhook-id"] for got in broken.got} == {sent["id"]}
        assert all(got.verified(made["secret"])["type"] == "ping" for got in broken.got)
        # Replay: the same message under the same id, with all tries to spare.
        broken.answers = lambda _: 200
        again = client.post(f"/deliveries/{sent['id']}/replay").json()
        assert (again["status"], again["tries"]) == ("pending", 0)
        found = one_try()
        assert (found["status"], found["tries"], found["error"]) == ("delivered", 1, None)
        assert found["delivered_at"] is not None
        assert broken.got[-1].headers["webhook-id"] == sent["id"]
    courier.close()
    with database.reading() as session:
        assert [entry.action for entry in about(session, made["id"])] == ["webhook.registered", "webhook.replayed"]


def _settled(client: TestClient, hook_id: str, status: str) -> dict[str, Any]:
    """The one message, once it has come into this status."""
    deadline = time.monotonic() + 20
    while True:
        (found,) = deliveries(client, hook_id)
        if found["status"] == status:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


@pytest.mark.usefixtures("_delivering")
def test_a_receiver_that_is_gone_is_left_alone(client: TestClient) -> None:
    with Receiver(answers=lambda _: 410) as gone:
        made = hook(client, gone.url)
        client.post(f"/webhooks/{made['id']}/ping")
        _settled(client, made["id"], "dead")
        assert client.get(f"/webhooks/{made['id']}").json()["disabled_at"] is not None
        problem(client.post(f"/webhooks/{made['id']}/ping"), 409, "conflict")
    assert client.delete(f"/webhooks/{made['id']}").status_code == 204
    problem(client.get(f"/webhooks/{made['id']}"), 404, "not_found")


def test_what_waits_for_a_removed_webhook_is_dead(client: TestClient, database: Database) -> None:
    made = hook(client, "http://127.0.0.1:9/")
    sent = client.post(f"/webhooks/{made['id']}/ping").json()
    problem(client.post(f"/deliveries/{sent['id']}/replay"), 409, "conflict")
    client.delete(f"/webhooks/{made['id']}")
    with database.reading() as session:
        found = session.get_one(Delivery, sent["id"])
        assert (found.status, found.error) == ("dead", "webhook_removed")
        assert outbox.any_due(session) is False


def test_a_try_that_never_ended_is_made_again_after_its_lease_and_its_late_end_counts_for_nothing(
    client: TestClient, database: Database
) -> None:
    made = hook(client, "http://127.0.0.1:9/")
    client.post(f"/webhooks/{made['id']}/ping")
    with database.transaction() as session:
        first = outbox.take(session)
        assert first is not None
    with database.transaction() as session:
        assert outbox.take(session) is None
        left = (session.get_one(Delivery, first.id).next_at - now(session)).total_seconds()
    assert LEASE - 10 < left <= LEASE
    due_now(database)
    with database.transaction() as session:
        second = outbox.take(session)
        assert second is not None
    assert (second.id, second.number) == (first.id, 2)
    with database.transaction() as session:
        assert outbox.ended(session, first, Outcome(None, "ReadTimeout")) is None
        assert outbox.ended(session, second, Outcome(200, None)) == "delivered"
        assert outbox.ended(session, second, Outcome(None, "ReadTimeout")) is None


def test_several_processes_make_no_try_twice(client: TestClient, database: Database, receiver: Receiver) -> None:
    made = hook(client, receiver.url)
    with database.transaction() as session:
        for _ in range(120):
            outbox.ping(session, session.get_one(outbox.Webhook, made["id"]))
    with ExitStack() as running:
        for _ in range(4):
            other = Deliverer(database, Vault(MASTER.encode()), Guard(LOOPBACK))
            other.start()
            running.callback(other.close)
        receiver.wait(120, 40)
    ids = [got.headers["webhook-id"] for got in receiver.got]
    assert len(ids) == len(set(ids)) == 120
    with database.reading() as session:
        ended = session.execute(select(Delivery.status, func.sum(Delivery.tries)).group_by(Delivery.status)).all()
    assert [tuple(row) for row in ended] == [("delivered", 120)]


@pytest.mark.usefixtures("_delivering")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_one_that_hangs_keeps_nobody_waiting(client: TestClient, receiver: Receiver) -> None:
    with Receiver(slow=1.0) as slow:
        held = hook(client, slow.url)
        quick = hook(client, receiver.url)
        for _ in range(6):
            client.post(f"/webhooks/{held['id']}/ping")
        slow.wait(2)
        began = time.monotonic()
        for _ in range(5):
            client.post(f"/webhooks/{quick['id']}/ping")
        receiver.wait(5, 5)
        assert time.monotonic() - began < 4
        slow.wait(6)
        assert slow.most_at_once == AT_ONCE_EACH


@pytest.mark.usefixtures("_delivering")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_principal_all_of_whose_receivers_hang_keeps_no_other_waiting(
    client: TestClient, database: Database, receiver: Receiver
) -> None:
    other = bearer(key_for(database, "other", scopes=["jobs:write"]))
    quick = client.post("/webhooks", json={"url": receiver.url}, headers=other).json()["id"]
    with Receiver(slow=1.0) as slow:
        for held in [hook(client, slow.url)["id"] for _ in range(AT_ONCE // AT_ONCE_EACH)]:
            for _ in range(AT_ONCE_EACH):
                client.post(f"/webhooks/{held}/ping")
        slow.wait(AT_ONCE_OF_ONE)
        client.post(f"/webhooks/{quick}/ping", headers=other)
        receiver.wait(1, 5)
        assert len(slow.got) < AT_ONCE
        slow.wait(AT_ONCE)
        assert slow.most_at_once == AT_ONCE_OF_ONE


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_due_dates_are_told_of_once_and_again_once_extended(
    client: TestClient, database: Database, model: str, dataset: str
) -> None:
    made = hook(client, "http://127.0.0.1:9/", "job.late", "job.due_soon")
    jobs = [client.post("/jobs", json=request_for(model, dataset)).json()["id"] for _ in range(4)]
    client.post(f"/jobs/{jobs[3]}/cancel")
    with database.transaction() as session:
        for job, days in zip(jobs, (-1, 3, 20, -1), strict=True):
            due = now(session) + timedelta(days=days)
            session.execute(update(Job).where(Job.id == job).values(due_at=due))

    def look() -> set[str]:
        with database.transaction() as session:
            return set(outbox.tell_of_due_dates(session, soon=timedelta(days=7)))

    assert look() == {jobs[0], jobs[1]}
    assert look() == set()
    told = {(d["kind"], d["payload"]["data"]["id"]) for d in deliveries(client, made["id"])}
    assert told == {("job.late", jobs[0]), ("job.due_soon", jobs[1])}
    with database.reading() as session:
        kinds = session.scalars(select(Event.kind).where(Event.job_id == jobs[0]).order_by(Event.id)).all()
    assert kinds == ["status", "late"]
    with database.transaction() as session:
        moment = now(session)
        later = {"extended_at": moment, "due_at": moment + timedelta(days=2)}
        session.execute(update(Job).where(Job.id == jobs[0]).values(later))
    assert look() == {jobs[0]}
    assert look() == set()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_data_set_that_is_destroyed_is_told_of(client: TestClient, dataset: str) -> None:
    made = hook(client, "http://127.0.0.1:9/", "dataset.destroyed")
    destroyed = client.delete(f"/datasets/{dataset}").json()["destroyed_at"]
    (told,) = deliveries(client, made["id"])
    assert told["payload"]["data"].keys() == {"id", "destroyed_at"}
    assert told["payload"]["data"]["id"] == dataset
    assert told["payload"]["data"]["destroyed_at"][:19] == destroyed[:19]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_api_that_is_killed_in_a_delivery_loses_no_message(
    database_url: str, database: Database, tmp_path: Path, client: TestClient
) -> None:
    settings = settings_for(database_url, tmp_path, webhook_allow=LOOPBACK, webhooks_deliver=True)
    with Receiver(slow=1.0) as receiver:
        made = hook(client, receiver.url)
        with ApiProcess(settings, tmp_path) as api:
            client.post(f"/webhooks/{made['id']}/ping")
            receiver.wait(1)
            api.process.kill()
            api.process.wait(10)
        (found,) = deliveries(client, made["id"])
        assert (found["status"], found["tries"]) == ("pending", 1)
        due_now(database)
        receiver.slow = 0.0
        with ApiProcess(settings, tmp_path):
            receiver.wait(2)
            assert _settled(client, made["id"], "delivered")["tries"] == 2
        first, second = receiver.got
        assert first.headers["webhook-id"] == second.headers["webhook-id"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_thousand_messages_starve_no_request(
    database_url: str, database: Database, tmp_path: Path, client: TestClient, key: str
) -> None:
    settings = settings_for(database_url, tmp_path, webhook_allow=LOOPBACK, webhooks_deliver=True)
    with Receiver(slow=0.02) as receiver:
        made = hook(client, receiver.url)
        with database.transaction() as session:
            for _ in range(1000):
                outbox.ping(session, session.get_one(outbox.Webhook, made["id"]))
        with ApiProcess(settings, tmp_path) as api, api.client(key) as caller, ThreadPoolExecutor(1) as pool:
            receiver.wait(1)
            slowest = pool.submit(lambda: max(_timed(caller) for _ in range(50))).result(60)
            assert receiver.got
            assert len(receiver.got) < 1000
    assert slowest < 2


def _timed(caller: Any) -> float:
    began = time.monotonic()
    assert caller.get("/jobs").status_code == 200
    return time.monotonic() - began


def test_every_status_has_its_kind() -> None:
    assert {f"job.{status}" for status in get_args(Status)} <= set(KINDS)
