"""What an API of the first version enters on migrated tables gets an owner, a due date, and its sets kept."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, text

from api.store import adopted, asked, audit, claims, due, retention
from api.store.columns import Base
from api.store.errors import Conflict
from api.store.session import Database
from api.store.tables import ApiKey, Dataset, Job, JobDataset, Principal
from tests.vault import VAULT

# The columns that the first version knows.
KNOWN = {
    "api_keys": "id name prefix hash created_at expires_at revoked_at last_used_at",
    "datasets": "id name rows size blob key commitment warnings key_id created_at",
    "jobs": (
        "id status attempt counted model_id forget_id retain_id key spec spec_digest reason reference progress verdict "
        "error cancel_requested lease_until leased_by key_id idempotency_key body_digest created_at queued_at rung_at "
        "started_at finished_at"
    ),
}


def entered(database: Database, table: type[Any], like: str, **changes: Any) -> str:
    """A row like this one, written as the first version writes it."""
    rows = Base.metadata.tables[table.__tablename__]
    with database.transaction() as session:
        row = session.execute(select(rows).where(rows.c.id == like)).mappings().one()
        told = {name: row[name] for name in KNOWN[rows.name].split()} | changes
        session.execute(rows.insert().values(told), execution_options={"synchronize_session": False})
    return str(changes["id"])


@pytest.fixture
def old_key(database: Database, key: ApiKey) -> str:
    return entered(database, ApiKey, key.id, id="key_old", prefix="oldoldol")


@pytest.fixture
def old_set(database: Database, dataset: Dataset, old_key: str) -> str:
    # Sealed under another id's name it would not open: the first version stored keys bare.
    return entered(database, Dataset, dataset.id, id="ds_00000001", key=b"k" * 32, key_id=old_key)


@pytest.fixture
def old_job(database: Database, job_id: str, old_set: str, old_key: str) -> str:
    with database.reading() as session:
        spec = session.get_one(Job, job_id).spec
    spec = {**spec, "data": {**spec["data"], "forget": {"source": "upload", "dataset": old_set}}}
    with database.transaction() as session:
        session.execute(text("UPDATE jobs SET status = 'cancelled'"))
    return entered(
        database, Job, job_id, id="job_old", spec=spec, forget_id=old_set, key_id=old_key, status="queued",
        idempotency_key="case",
    )  # fmt: skip


def expect_adopted(database: Database, job_id: str, set_id: str, key_id: str) -> None:
    with database.reading() as session:
        job, key = session.get_one(Job, job_id), session.get_one(ApiKey, key_id)
        owner = session.get_one(Principal, job.principal_id)
        assert (owner.name, owner.id) == (f"{key.name} ({key.id})", key.principal_id)
        assert key.scopes == [], "it opens what it opened before: nothing"
        assert job.due_at == due.of(job.created_at)
        named = select(JobDataset.role, JobDataset.dataset_id).where(JobDataset.job_id == job_id)
        assert [tuple(row) for row in session.execute(named)] == [("forget", set_id)]
        assert asked.of(session, job)["submitted_by"] == {"id": owner.id, "name": owner.name}
        assert [entry.action for entry in audit.about(session, owner.id)] == ["principal.created"]


def test_what_is_entered_after_the_migration_is_adopted_once_by_however_many_look(
    database: Database, old_job: str, old_set: str, old_key: str
) -> None:
    def look(_: int) -> int:
        with database.transaction() as session:
            return adopted.adopt(session)

    with ThreadPoolExecutor(4) as pool:
        found = sum(pool.map(look, range(4)))
    found += look(0)
    assert found == 3
    assert look(0) == 0
    expect_adopted(database, old_job, old_set, old_key)
    with database.reading() as session:
        assert session.get_one(Dataset, old_set).principal_id == session.get_one(ApiKey, old_key).principal_id


def test_a_job_that_is_claimed_before_anybody_looked_is_adopted(
    database: Database, old_job: str, old_set: str, old_key: str
) -> None:
    with database.transaction() as session:
        claim = claims.claim_next(session, worker="w", lease=30.0, vault=VAULT)
    assert claim is not None
    assert (claim.job_id, [*claim.datasets]) == (old_job, [old_set])
    expect_adopted(database, old_job, old_set, old_key)


def test_a_set_whose_job_nobody_has_adopted_is_not_destroyed(database: Database, old_job: str, old_set: str) -> None:
    with database.transaction() as session, pytest.raises(Conflict, match=f"{old_job} is queued"):
        retention.destroy(session, old_set, actor="test", why="request")
    with database.transaction() as session:
        adopted.adopt(session)
    with database.reading() as session:
        assert old_set not in retention.due(session, datetime(2999, 1, 1, tzinfo=UTC))


def test_a_second_use_of_an_idempotency_key_keeps_nobody_from_being_adopted(
    database: Database, old_job: str, old_key: str
) -> None:
    entered(database, ApiKey, old_key, id="key_more", prefix="moremore")
    with database.transaction() as session:
        adopted.adopt(session)
        owner = session.get_one(ApiKey, old_key).principal_id
        session.get_one(ApiKey, "key_more").principal_id = owner
    entered(database, Job, old_job, id="job_more", key_id="key_more")
    with database.transaction() as session:
        adopted.adopt(session)
    with database.reading() as session:
        job = session.get_one(Job, "job_more")
        assert (job.principal_id, job.idempotency_key) == (owner, None)
