"""Aliases: moved by hand and by jobs, one step back at a time. Jobs on one run in turn, each where the last ended."""

from collections.abc import Callable
from typing import Any

import pytest

from api.store import aliases, attempts, audit, checkpoints, claims, events, jobs, keys, models, turn
from api.store.claims import Claim
from api.store.errors import Conflict, NotFound, NotPassed
from api.store.session import Database
from api.store.tables import ApiKey, Dataset, Model
from core.errors import SpecError
from tests.parallel import at_once
from tests.store.conftest import SECRET, spec_for, stored
from tests.store.test_lineage import finish, forget  # noqa: F401 -- a fixture
from tests.vault import VAULT

ON = {"alias": "production"}
Submit = Callable[..., str]


@pytest.fixture
def production(database: Database, model: Model) -> Model:
    """What `production` stands for at first."""
    with database.transaction() as session:
        aliases.promote(session, "production", model.id, reason="first", actor="prn_a")
    return model


@pytest.fixture
def submit(database: Database, key: ApiKey, dataset: Dataset) -> Submit:
    def submitted(model: Any = ON, **more: Any) -> str:
        with database.transaction() as session:
            return jobs.create(session, spec_for(model, dataset.id, **more), key_id=key.id)[0].id

    return submitted


def take_next(database: Database) -> Claim | None:
    with database.transaction() as session:
        return claims.claim_next(session, worker="w1", lease=30, vault=VAULT)


def stands_for(database: Database) -> str:
    with database.reading() as session:
        return aliases.get(session, "production").model_id


def test_an_alias_is_moved_and_moved_back_one_promotion_at_a_time(
    database: Database, production: Model, request: pytest.FixtureRequest
) -> None:
    make = request.getfixturevalue("forget")
    first, second = make(production.id, "a"), make(production.id, "b")
    with database.transaction() as session:
        for model in (first, second, second):
            aliases.promote(session, "production", model.id, reason="case 7", actor="prn_a", key_id="key_a")
    seen = []
    for _ in range(2):
        with database.transaction() as session:
            seen.append(aliases.roll_back(session, "production", reason="too weak", actor="prn_b").model_id)
    assert seen == [first.id, production.id]
    with database.transaction() as session, pytest.raises(Conflict, match="nothing can be undone"):
        aliases.roll_back(session, "production", reason="again", actor="prn_b")
    with database.transaction() as session:
        aliases.promote(session, "production", second.id, reason="better", actor="prn_a")
        models.delete(session, production.id, actor="prn_a")
    with database.reading() as session:
        changes = [(p.before_id, p.model_id, p.undone_at is None) for p in aliases.history(session, "production")]
        actions = [(entry.actor, entry.action) for entry in audit.about(session, "production")]
    assert changes == [
        (production.id, second.id, True),
        (first.id, second.id, False),
        (production.id, first.id, False),
        (None, production.id, True),
    ]
    assert actions == [("prn_a", "alias.promoted")] * 3 + [("prn_b", "alias.rolled_back")] * 2 + [
        ("prn_a", "alias.promoted")
    ]
    with database.transaction() as session, pytest.raises(Conflict, match="is deleted"):
        aliases.roll_back(session, "production", reason="again", actor="prn_b")


def test_a_model_that_has_not_passed_is_promoted_only_by_force(
    database: Database, production: Model, request: pytest.FixtureRequest
) -> None:
    weak = request.getfixturevalue("forget")(production.id, "a", "inconclusive")
    with database.transaction() as session, pytest.raises(NotPassed, match=r"inconclusive\. Set force"):
        aliases.promote(session, "production", weak.id, reason="hurry", actor="prn_a")
    assert stands_for(database) == production.id
    with database.transaction() as session:
        aliases.promote(session, "production", weak.id, reason="hurry", actor="prn_a", force=True)
        assert audit.about(session, "production")[-1].facts["forced"] is True
    for unknown in ("mdl_00000000", weak.id):
        with database.transaction() as session:
            if unknown == weak.id:
                aliases.roll_back(session, "production", reason="back", actor="prn_a")
                models.delete(session, weak.id, actor="prn_a")
            with pytest.raises(SpecError, match="There is no model"):
                aliases.promote(session, "staging", unknown, reason="try", actor="prn_a", force=True)
    with database.reading() as session, pytest.raises(NotFound):
        aliases.get(session, "staging")


def test_an_alias_made_by_many_at_once_is_one(database: Database, model: Model) -> None:
    def promote(number: int) -> bool:
        with database.transaction() as session:
            return aliases.promote(session, "production", model.id, reason=str(number), actor="prn_a")[1]

    assert sorted(at_once(4, promote)) == [False, False, False, True]
    with database.reading() as session:
        assert len(aliases.history(session, "production")) == 1


@pytest.mark.usefixtures("production")
def test_an_alias_that_is_not_there_names_those_that_are(submit: Submit) -> None:
    with pytest.raises(SpecError, match=r"There is no alias 'staging'\. Allowed: production"):
        submit({"alias": "staging"})


def test_jobs_on_an_alias_run_in_turn_and_keep_no_other_waiting(
    database: Database, production: Model, submit: Submit
) -> None:
    first, second, other = submit(priority="high"), submit(priority="high"), submit(production.id, priority="low")
    with database.reading() as session:
        assert jobs.get(session, first).model_id is None
    one, pinned = take_next(database), take_next(database)
    assert one is not None
    assert pinned is not None
    assert (one.job_id, pinned.job_id, take_next(database)) == (first, other, None)
    assert one.model is not None
    assert one.model.id == production.id
    with database.transaction() as session:
        assert claims.claim(session, second, worker="w2", lease=30, vault=VAULT) is None
        assert [turn.waits_for(session, jobs.get(session, job)) for job in (second, first, other)] == [
            first,
            None,
            None,
        ]
    finish(database, one, "a")
    with database.reading() as session:
        made = models.of_job(session, first)
        assert made is not None
        told = {event.kind: event.data for event in events.since(session, first)}
        newest = aliases.history(session, "production")[0]
    assert stands_for(database) == made.id
    assert told["promoted"] == {"alias": "production", "model": made.id}
    assert (newest.actor, newest.before_id) == (f"job:{first}", production.id)
    after = take_next(database)
    assert after is not None
    assert after.model is not None
    assert (after.job_id, after.model.id) == (second, made.id)


@pytest.mark.usefixtures("production")
def test_of_workers_at_once_one_begins_on_an_alias(database: Database, submit: Submit) -> None:
    for _ in range(3):
        submit()
    claims = at_once(4, lambda _: take_next(database))
    assert len([claim for claim in claims if claim is not None]) == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_verdict_that_is_not_passed_moves_nothing(database: Database, production: Model, submit: Submit) -> None:
    submit()
    claim = take_next(database)
    assert claim is not None
    finish(database, claim, "a", "not_passed")
    assert stands_for(database) == production.id


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_alias_that_was_moved_meanwhile_stays_where_it_was_put(
    database: Database, production: Model, submit: Submit, request: pytest.FixtureRequest
) -> None:
    other = request.getfixturevalue("forget")(production.id, "c")
    job_id = submit()
    claim = take_next(database)
    assert claim is not None
    with database.transaction() as session:
        aliases.promote(session, "production", other.id, reason="by hand", actor="prn_a")
    finish(database, claim, "a")
    assert stands_for(database) == other.id
    with database.reading() as session:
        made = models.of_job(session, job_id)
        assert made is not None
        told = {event.kind: event.data for event in events.since(session, job_id)}
        logged = audit.about(session, "production")[-1]
    why = {"stands_for": other.id, "reason": "it was moved while the job ran"}
    assert told["not_promoted"] == {"alias": "production", "model": made.id} | why
    assert (logged.action, logged.facts) == ("alias.not_promoted", {"model": made.id, "job": job_id} | why)


def test_a_job_moves_an_alias_only_where_its_key_could(database: Database, production: Model, dataset: Dataset) -> None:
    with database.transaction() as session:
        weak, strong = (
            keys.create(session, SECRET, name="ben", principal="tests", actor="t", scopes=["jobs:write", *more])[0].id
            for more in ([], ["models:write"])
        )
        made = {key: jobs.create(session, spec_for(ON, dataset.id), key_id=key)[0].id for key in (weak, strong)}
        assert aliases.mover(session, [made[weak], made[strong]]) == made[strong]
        assert aliases.mover(session, [made[weak]]) is None
    claim = take_next(database)
    assert claim is not None
    finish(database, claim, "a")
    with database.reading() as session:
        told = {event.kind: event.data for event in events.since(session, made[weak])}
        logged = audit.about(session, "production")[-1]
    assert stands_for(database) == production.id
    assert told["not_promoted"]["reason"] == "the key that asked for the job lacks the scope models:write"
    assert (logged.action, logged.facts["job"]) == ("alias.not_promoted", made[weak])
    claim = take_next(database)
    assert claim is not None
    finish(database, claim, "b")
    with database.transaction() as session:
        assert stands_for(database) == getattr(models.of_job(session, made[strong]), "id", None)
        left = models.of_job(session, made[weak])
        assert left is not None
        aliases.promote(session, "production", left.id, reason="looked at", actor="prn_a")


def test_a_checkpoint_is_gone_on_from_only_on_the_same_model(
    database: Database, production: Model, submit: Submit, request: pytest.FixtureRequest
) -> None:
    job_id = submit()

    def interrupted(step: int) -> Claim:
        claim = take_next(database)
        assert claim is not None
        with database.transaction() as session:
            attempts.save_checkpoint(session, claim, step, [stored("weights", str(step), sealed=True)])
            attempts.release(session, claim, reason="the worker left", counts=False)
        return claim

    interrupted(1)
    again = interrupted(2)
    assert again.checkpoint is not None
    assert (again.checkpoint.step, again.unused) == (1, [])
    other = request.getfixturevalue("forget")(production.id, "c")
    with database.transaction() as session:
        aliases.promote(session, "production", other.id, reason="by hand", actor="prn_a")
    anew = take_next(database)
    assert anew is not None
    assert anew.model is not None
    assert (anew.job_id, anew.model.id, anew.checkpoint) == (job_id, other.id, None)
    assert sorted(anew.unused) == ["1" * 64, "2" * 64]
    with database.reading() as session:
        assert checkpoints.of(session, job_id) == []
