"""Many requests in one transaction: each is judged by itself, and what one did wrong is not the others' fault."""

from typing import Any

from sqlalchemy import func, select

from api.store import audit, entering, events, jobs, keys
from api.store.entering import Request
from api.store.errors import IdempotencyMismatch
from api.store.session import Database
from api.store.tables import ApiKey, Dataset, Job, JobDataset, Model
from core.errors import SpecError
from tests.store.conftest import spec_for


def request(key: ApiKey, model: str, dataset: str, digest: str = "d", **more: Any) -> Request:
    given = {name: more.pop(name) for name in ("idempotency_key", "request_id", "needs_approval") if name in more}
    return Request(spec_for(model, dataset, **more), key.id, key.principal_id, body_digest=digest, **given)


def test_good_and_bad_ones_together(database: Database, key: ApiKey, model: Model, dataset: Dataset) -> None:
    asked = [
        request(key, model.id, dataset.id, reference="first", request_id="req_1"),
        request(key, "mdl_00000000", dataset.id),
        request(key, model.id, dataset.id, idempotency_key="once"),
        request(key, model.id, dataset.id, idempotency_key="once"),
        request(key, model.id, dataset.id, idempotency_key="once", digest="another"),
        request(key, model.id, "ds_00000000"),
        request(key, model.id, dataset.id, needs_approval=True),
    ]
    with database.transaction() as session:
        first, no_model, once, again, other, no_set, awaiting = entering.enter(session, asked)
    assert isinstance(no_model, SpecError)
    assert no_model.param == "model.id"
    assert isinstance(no_set, SpecError)
    assert no_set.param == "data.forget.dataset"
    assert isinstance(other, IdempotencyMismatch)
    assert not isinstance(first, Exception)
    assert not isinstance(once, Exception)
    assert not isinstance(again, Exception)
    assert not isinstance(awaiting, Exception)
    assert [first[1], once[1], again[1], awaiting[1]] == [True, True, False, True]
    assert once[0].id == again[0].id
    with database.reading() as session:
        made = {first[0].id: "queued", once[0].id: "queued", awaiting[0].id: "awaiting_approval"}
        assert {row[0]: row[1] for row in session.execute(select(Job.id, Job.status))} == made
        assert session.scalar(select(func.count()).select_from(JobDataset)) == 3
        for job_id, status in made.items():
            assert [e.data for e in events.since(session, job_id)] == [{"from": None, "to": status}]
            (entry,) = audit.about(session, job_id)
            assert (entry.actor, entry.key_id, entry.action) == (key.principal_id, key.id, "job.created")
        assert audit.about(session, first[0].id)[0].facts["request_id"] == "req_1"
    # In a later turn the key is known before anything is judged, also where the model is gone since.
    with database.transaction() as session:
        (known,) = entering.enter(session, [request(key, "mdl_00000000", dataset.id, idempotency_key="once")])
        assert not isinstance(known, Exception)
        assert (known[0].id, known[1]) == (once[0].id, False)


def test_what_is_told_of_a_new_job_is_what_is_stored(
    database: Database, key: ApiKey, model: Model, dataset: Dataset
) -> None:
    with database.transaction() as session:
        (entered,) = entering.enter(session, [request(key, model.id, dataset.id, reference="case 7")])
    assert not isinstance(entered, Exception)
    with database.reading() as session:
        stored = jobs.get(session, entered[0].id)
        for column in Job.__table__.columns:
            assert getattr(entered[0], column.name) == getattr(stored, column.name), column.name


def test_anothers_set_is_as_absent_as_one_that_never_was(database: Database, model: Model, dataset: Dataset) -> None:
    with database.transaction() as session:
        blind, _ = keys.create(session, bytes(32), name="ben", actor="cli", scopes=["jobs:write"])
        sees, _ = keys.create(session, bytes(32), name="cleo", actor="cli", scopes=["jobs:read", "jobs:write"])
        asked = [
            request(blind, model.id, dataset.id),
            request(blind, model.id, "ds_00000000"),
            # Nor does another fault in the same request tell them apart.
            request(blind, "mdl_00000000", dataset.id),
            request(blind, "mdl_00000000", "ds_00000000"),
            request(sees, model.id, dataset.id),
        ]
        *refused, allowed = entering.enter(session, asked)
    assert not isinstance(allowed, Exception)
    for foreign, absent in (refused[:2], refused[2:]):
        assert isinstance(foreign, SpecError)
        assert isinstance(absent, SpecError)
        assert str(foreign).replace(dataset.id, "ds_00000000") == str(absent)
    assert isinstance(refused[2], SpecError)
    assert [fault.param for fault in refused[2].problems] == ["model.id", "data.forget.dataset"]
    with database.transaction() as session:
        session.get_one(Dataset, dataset.id).destroyed_at = session.get_one(Dataset, dataset.id).created_at
        destroyed, _ = entering.enter(session, asked[:2])
    assert str(destroyed) == str(refused[0]), "nor whether it was destroyed"
