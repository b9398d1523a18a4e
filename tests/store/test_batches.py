"""Jobs that share a run: begun together, resumed together or not at all, and none loses by another's fault."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from api.store import attempts, batches, checkpoints, claims, datasets, endings, jobs, life, sealed, sweep
from api.store.claims import Claim
from api.store.session import Database, now
from api.store.tables import ApiKey, Job, Model
from core.errors import DataError, LeaseLost
from core.spec.job import parse
from tests.parallel import at_once
from tests.store.conftest import stored
from tests.vault import VAULT

FAULT = DataError("line 1 of an upload is no record", param="data.forget").as_dict()
Submit = Callable[..., str]


@pytest.fixture
def submit(database: Database, key: ApiKey, model: Model) -> Submit:
    """Makes a queued job with a forget set of its own; `more` goes into its spec."""

    def made(**more: Any) -> str:
        with database.transaction() as session:
            facts: dict[str, Any] = {"rows": 1, "size": 1, "commitment": "7" * 64, "warnings": [], "key_id": key.id}
            own = datasets.register(session, VAULT, blob="6" * 64, key=sealed.new_key(), **facts).id
            wanted = {"model": model.id, "data": {"forget": {"source": "upload", "dataset": own}}, "method": "GA"}
            return jobs.create(session, parse(wanted | {"batch": True} | more), key_id=key.id)[0].id

    return made


def take(database: Database, most: int = 16) -> Claim | None:
    with database.transaction() as session:
        return claims.claim_next(session, worker="w", lease=30, vault=VAULT, most=most)


def begun(database: Database, most: int = 16) -> Claim:
    claim = take(database, most)
    assert claim is not None
    return claim


def ids(claim: Claim) -> list[str]:
    return [each.job_id for each in claim.everyone]


def seen(database: Database, ids: Sequence[str]) -> list[Job]:
    with database.reading() as session:
        return [jobs.get(session, job_id) for job_id in ids]


def keep(database: Database, claim: Claim, step: int = 5) -> None:
    with database.transaction() as session:
        attempts.save_checkpoint(session, claim, step, [stored("weights", "c", sealed=True)])


def leave(database: Database, claim: Claim, **how: Any) -> None:
    with database.transaction() as session:
        endings.release(session, claim, **{"reason": "the worker left", "counts": False, **how})


def test_what_must_be_alike_and_what_may_differ(submit: Submit, database: Database) -> None:
    easy = [{"metric": "forget.probability", "at_most": 0.9}]
    alike = [submit(), submit(gates=easy), submit(reference="2041", reason="harm", received_at="2026-01-01T00:00:00Z")]
    others = [
        submit(seed=1),
        submit(training={"steps": 3}),
        submit(method={"name": "npo", "retain": "none"}),
        submit(batch=False),
    ]
    digests = [job.batch for job in seen(database, [*alike, *others])]
    assert len(set(digests[:3])) == 1
    assert digests[0] is not None
    assert len(set(digests)) == 5
    assert digests[-1] is None
    claim = begun(database)
    assert sorted(ids(claim)) == sorted(alike)
    assert [job.led_by for job in seen(database, alike)] == [claim.job_id] * 3
    assert {(job.status, job.attempt) for job in seen(database, alike)} == {("running", 1)}
    assert len({each.key for each in claim.everyone}) == 3
    with database.reading() as session:
        assert sorted(batches.members(session, claim.job_id)) == sorted(alike)
    assert [ids(begun(database)) for _ in others] == [[job_id] for job_id in others]


def test_no_run_is_shared_with_another_principal(submit: Submit, database: Database) -> None:
    made = [submit() for _ in range(4)]
    with database.transaction() as session:
        for job_id in made[1::2]:
            jobs.get(session, job_id).principal_id = "prn_another"
    assert [sorted(ids(begun(database))) for _ in range(2)] == [made[::2], made[1::2]]


def test_no_more_than_the_most_in_the_queue_s_order(submit: Submit, database: Database) -> None:
    made = [submit(priority="low"), submit(), submit(), submit(priority="high")]
    assert ids(begun(database, 2)) == [made[3], made[1]]
    assert ids(begun(database, 1)) == [made[2]]
    assert seen(database, [made[2]])[0].led_by is None
    assert ids(begun(database)) == [made[0]]
    assert take(database) is None


def test_workers_at_once_share_nobody(submit: Submit, database: Database) -> None:
    made = [submit() for _ in range(12)]
    claims = [claim for claim in at_once(6, lambda _: take(database, 3)) if claim is not None]
    taken = [job_id for claim in claims for job_id in ids(claim)]
    assert len(taken) == len(set(taken))
    while claim := take(database, 3):
        taken += ids(claim)
    assert sorted(taken) == sorted(made)


def test_the_same_jobs_go_on_from_their_checkpoint(submit: Submit, database: Database) -> None:
    made = [submit() for _ in range(3)]
    first = begun(database)
    keep(database, first)
    leave(database, first)
    submit()  # It comes too late to take part.
    again = begun(database)
    assert (again.job_id, sorted(ids(again))) == (first.job_id, sorted(made))
    assert again.checkpoint is not None
    assert (again.checkpoint.step, again.seal, [each.attempt for each in again.everyone]) == (5, first.seal, [2, 2, 2])
    assert first.seal not in {each.key for each in first.everyone}


def test_where_one_has_left_the_checkpoint_goes(submit: Submit, database: Database, key: ApiKey) -> None:
    made = [submit() for _ in range(3)]
    first = begun(database)
    keep(database, first)
    with database.transaction() as session:
        assert life.request_cancel(session, made[1], key.id).status == "running"
        endings.cancelled(session, first)
    assert [(job.status, job.counted) for job in seen(database, made)] == [
        ("queued", 0),
        ("cancelled", 0),
        ("queued", 0),
    ]
    again = begun(database)
    assert (sorted(ids(again)), again.checkpoint) == ([made[0], made[2]], None)
    assert list(again.unused) == [stored("weights", "c").digest]
    assert again.seal != first.seal
    with database.reading() as session:
        assert checkpoints.of(session, first.job_id) == []
    with pytest.raises(LeaseLost), database.transaction() as session:
        endings.release(session, first, reason="late", counts=True)


def test_a_fault_is_borne_by_whose_it_is(submit: Submit, database: Database) -> None:
    made = [submit() for _ in range(3)]
    with database.transaction() as session:
        endings.fail(session, attempts_of(session), FAULT, made[2])
    assert [job.status for job in seen(database, made)] == ["queued", "queued", "failed"]
    assert sorted(ids(begun(database))) == made[:2]


def attempts_of(session: Any) -> Claim:
    claim = claims.claim_next(session, worker="w", lease=30, vault=VAULT, most=16)
    assert claim is not None
    return claim


def test_a_fault_of_nobody_known_parts_them(submit: Submit, database: Database) -> None:
    made = [submit() for _ in range(3)]
    shared = begun(database)
    keep(database, shared)
    with database.transaction() as session:
        endings.fail(session, shared, FAULT)
    alone = [begun(database) for _ in made]
    assert [ids(claim) for claim in alone] == [[job_id] for job_id in made]
    assert {claim.checkpoint for claim in alone} == {None}
    with database.transaction() as session:
        endings.fail(session, alone[0], FAULT)
    assert [job.status for job in seen(database, made)] == ["failed", "running", "running"]


def test_at_the_cap_each_has_one_more_attempt_alone(submit: Submit, database: Database) -> None:
    made = [submit() for _ in range(2)]
    for _ in range(2):
        leave(database, begun(database), reason="killed", counts=True, cap=2)
    assert [(job.status, job.batch) for job in seen(database, made)] == [("queued", None)] * 2
    alone = begun(database)
    assert ids(alone) == [made[0]]
    leave(database, alone, reason="killed", counts=True, cap=2)
    assert [job.status for job in seen(database, made)] == ["failed", "queued"]


def test_a_run_whose_lease_ran_out_is_swept_whole(submit: Submit, database: Database) -> None:
    made = [submit() for _ in range(3)]
    claim = begun(database)
    keep(database, claim)
    with database.transaction() as session:
        for each in claim.everyone:
            jobs.get(session, each.job_id).lease_until = now(session) - timedelta(seconds=1)
    with database.transaction() as session:
        assert len(sweep.expired(session)) == 3
    again = begun(database)
    assert (sorted(ids(again)), [each.attempt for each in again.everyone]) == (made, [2, 2, 2])
    assert again.checkpoint is not None


def test_a_job_with_a_checkpoint_of_its_own_goes_on_alone(submit: Submit, database: Database) -> None:
    first = submit()
    lone = begun(database)
    keep(database, lone)
    leave(database, lone)
    late = [submit(), submit()]
    again = begun(database)
    assert (ids(again), again.checkpoint is not None, again.seal) == ([first], True, lone.key)
    leave(database, again)
    with database.transaction() as session:
        jobs.get(session, first).rank = 2
    assert sorted(ids(begun(database))) == late


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_workers_who_part_a_run_at_once_do_not_wait_for_each_other(
    submit: Submit, database: Database, key: ApiKey
) -> None:
    for _ in range(5):
        made = [submit() for _ in range(6)]
        first = begun(database)
        keep(database, first)
        with database.transaction() as session:
            life.request_cancel(session, made[1], key.id)
            endings.cancelled(session, first)
        claims = [claim for claim in at_once(3, lambda _: take(database, 2)) if claim is not None]
        while claim := take(database, 2):
            claims.append(claim)
        assert sorted(job_id for claim in claims for job_id in ids(claim)) == [made[0], *made[2:]]
        assert not any(claim.checkpoint for claim in claims)
        for claim in claims:
            led_by = claim.job_id if claim.others else None
            assert {job.led_by for job in seen(database, ids(claim))} == {led_by}
        with database.transaction() as session:
            session.execute(update(Job).values(status="cancelled", batch=None))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_job_that_somebody_holds_is_not_parted_nor_counted_into_the_next_run(
    submit: Submit, database: Database, key: ApiKey
) -> None:
    made = [submit() for _ in range(4)]
    first = begun(database)
    keep(database, first)
    leave(database, first)
    with database.transaction() as holder:
        life.request_cancel(holder, made[1], key.id)
        alone = begun(database)
    assert (ids(alone), alone.checkpoint) == ([made[0]], None)
    assert [job.led_by for job in seen(database, made)] == [None, made[0], None, None]
    with database.transaction() as session:
        life.retry(session, made[1], key.id)
    assert sorted(ids(begun(database))) == made[1:]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_leader_that_somebody_holds_keeps_its_checkpoint(submit: Submit, database: Database) -> None:
    made = [submit() for _ in range(3)]
    first = begun(database)
    keep(database, first)
    leave(database, first)
    with database.transaction() as holder:
        holder.get_one(Job, made[0], with_for_update=True)
        others = begun(database)
        assert (sorted(ids(others)), others.checkpoint, others.unused) == (made[1:], None, [])
        assert len(checkpoints.of(holder, made[0])) == 1
    again = begun(database)
    assert (ids(again), again.checkpoint, len(again.unused)) == ([made[0]], None, 1)
