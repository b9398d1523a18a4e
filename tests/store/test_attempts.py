"""Claims are won by one, writes are fenced, and an attempt ends in exactly one way."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from api.store import (
    artifacts,
    attempts,
    audit,
    checkpoints,
    claims,
    datasets,
    events,
    jobs,
    life,
    metrics,
    models,
    sweep,
)
from api.store.artifacts import StoredFile
from api.store.attempts import Note
from api.store.claims import Claim
from api.store.errors import InvalidSetting
from api.store.metrics import Measurement
from api.store.records import ArtifactKind
from api.store.session import Database, now
from api.store.tables import ApiKey, Dataset, Model
from api.store.vault import Vault
from core.errors import Diverged, LeaseLost
from core.spec.job import JobSpec, parse
from tests.attempts import attempts_of
from tests.parallel import at_once
from tests.store.conftest import spec_for, stored
from tests.vault import VAULT

Take = Callable[..., Claim]


def test_one_of_many_wins_the_claim(database: Database, job_id: str, model: Model, dataset: Dataset) -> None:
    def claim(number: int) -> Claim | None:
        with database.transaction() as session:
            return claims.claim(session, job_id, worker=f"w{number}", lease=30, vault=VAULT)

    (won,) = [claim for claim in at_once(8, claim) if claim is not None]
    with database.reading() as session:
        job = jobs.get(session, job_id)
        assert (job.status, job.attempt, job.leased_by) == ("running", 1, won.worker)
        assert job.lease_until is not None
        assert timedelta(seconds=20) < job.lease_until - now(session) <= timedelta(seconds=30)
        assert [(a.number, a.worker) for a in attempts_of(session, job_id)] == [(1, won.worker)]
        assert [e.data["to"] for e in events.since(session, job_id)] == ["queued", "running"]
        assert (parse(won.spec).digest(), won.spec_digest) == (job.spec_digest, job.spec_digest)
    assert won.model is not None
    assert won.model.path == model.path
    opened = VAULT.unwrap(dataset.key, dataset.id)
    assert (won.datasets[dataset.id].blob, won.key, won.checkpoint) == (dataset.blob, opened, None)
    for secret in (dataset.key, opened):
        assert secret.hex() not in repr(won)
        assert repr(secret) not in repr(won)


def test_a_claim_holds_every_model_and_upload_that_the_spec_names(
    database: Database, key: ApiKey, model: Model, dataset: Dataset, take: Take
) -> None:
    def registered(path: str) -> str:
        facts: dict[str, Any] = {"files": {}, "architecture": "LlamaForCausalLM", "key_id": key.id}
        return models.register(session, path=path, digest="5" * 64, **facts)[0].id

    def uploaded(secret: bytes) -> str:
        facts: dict[str, Any] = {"rows": 1, "size": 1, "warnings": [], "key_id": key.id}
        return datasets.register(session, VAULT, blob="6" * 64, commitment="7" * 64, key=secret, **facts).id

    with database.transaction() as session:
        base, retrained, reference = (registered(path) for path in ("/base", "/retrained", "/reference"))
        holdout, text = (uploaded(secret * 32) for secret in (b"h", b"t"))
        sets = {"forget": dataset.id, "holdout": holdout, "text": text}
        asked = {
            "model": model.id,
            "data": {name: {"source": "upload", "dataset": upload} for name, upload in sets.items()}
            | {"retain": {"source": "jsonl", "path": "/retain"}},
            "method": {"name": "retrain", "base": base},
            "evaluation": {"retrained": retrained, "reference": reference},
        }
        job_id = jobs.create(session, parse(asked), key_id=key.id)[0].id
    claim = take(job_id)
    assert {name: found.path for name, found in claim.models.items()} == {
        model.id: model.path,
        base: "/base",
        retrained: "/retrained",
        reference: "/reference",
    }
    assert claim.model is claim.models[model.id]
    opened = VAULT.unwrap(dataset.key, dataset.id)
    assert claim.keys == {dataset.id: opened, holdout: b"h" * 32, text: b"t" * 32}
    assert {name: found.id for name, found in claim.datasets.items()} == {name: name for name in claim.keys}
    assert claim.key == opened
    assert not any(found.key in (b"h" * 32, b"t" * 32) for found in claim.datasets.values())
    assert "h" * 32 not in repr(claim)


def test_a_job_whose_data_brings_no_key_gets_one(database: Database, key: ApiKey, take: Take) -> None:
    asked = parse({"model": {"path": "/m"}, "data": {"forget": {"source": "jsonl", "path": "/f"}}, "method": "GA"})
    with database.transaction() as session:
        made = [jobs.create(session, asked, key_id=key.id)[0].id for _ in range(2)]
    first, second = (take(job_id) for job_id in made)
    assert (first.model, first.datasets, len(first.key)) == (None, {}, 32)
    assert first.key != second.key
    with database.transaction() as session:
        assert jobs.get(session, made[0]).key != first.key
        attempts.release(session, first, reason="the worker left", counts=False)
    assert take(made[0]).key == first.key


def test_a_key_that_does_not_open_holds_up_no_other_job(
    database: Database, job_id: str, dataset: Dataset, key: ApiKey, model: Model
) -> None:
    def take_next(vault: Vault = VAULT) -> Claim | None:
        with database.transaction() as session:
            return claims.claim_next(session, worker="w1", lease=30, vault=vault)

    with database.transaction() as session:
        facts: dict[str, Any] = {"rows": 1, "size": 1, "commitment": "7" * 64, "warnings": [], "key_id": key.id}
        good = datasets.register(session, VAULT, blob="6" * 64, key=bytes(32), **facts)
        behind = jobs.create(session, spec_for(model.id, good.id), key_id=key.id)[0].id
        session.get_one(Dataset, dataset.id).key = Vault(b"another").wrap(bytes(32), dataset.id)
    with pytest.raises(InvalidSetting, match="does not open the key of"):
        take_next(Vault(b"neither of the two"))
    damaged, whole = take_next(), take_next()
    assert damaged is not None
    assert whole is not None
    assert (damaged.job_id, damaged.keys, whole.job_id, whole.closed) == (job_id, {}, behind, None)
    assert damaged.closed is not None
    assert dataset.id in damaged.closed.message


def test_what_is_not_queued_cannot_be_claimed(database: Database, job_id: str, take: Take) -> None:
    take(job_id)
    with database.transaction() as session:
        assert claims.claim(session, job_id, worker="w2", lease=30, vault=VAULT) is None
        assert claims.claim(session, "job_00000000", worker="w2", lease=30, vault=VAULT) is None
        assert claims.claim(session, "from another queue \x00", worker="w2", lease=30, vault=VAULT) is None


def test_record_renews_the_lease_and_writes_all_it_is_given(database: Database, job_id: str, take: Take) -> None:
    claim = take(job_id, lease=0)
    progress = {"phase": "train", "step": 2, "steps": 10, "loss": 1e-20}
    with database.transaction() as session:
        assert not attempts.record(
            session,
            claim,
            lease=60,
            progress=progress,
            notes=[Note("phase", {"phase": "train"})],
            measurements=[Measurement("step", 1, {"loss": 2.5}), Measurement("step", 2, {"loss": 1e-20})],
        )
    with database.transaction() as session:
        attempts.record(session, claim, lease=60)
        job = jobs.get(session, job_id)
        assert job.progress == progress
        assert job.lease_until is not None
        assert job.lease_until > now(session) + timedelta(seconds=50)
        assert events.since(session, job_id)[-1].data == {"phase": "train"}
        assert [(m.step, m.values) for m in metrics.of(session, job_id, "step")] == [
            (1, {"loss": 2.5}),
            (2, {"loss": 1e-20}),
        ]
        assert sweep.expired(session) == []


def test_a_repeated_step_replaces_the_earlier_one(database: Database, job_id: str, take: Take) -> None:
    first = take(job_id)
    with database.transaction() as session:
        curve = [Measurement("step", step, {"loss": float(step)}) for step in (1, 2, 3)]
        attempts.record(session, first, lease=30, measurements=[*curve, Measurement("before", 0, {"p": 0.9})])
        attempts.release(session, first, reason="the worker leaves", counts=False)
    second = take(job_id)
    with database.transaction() as session:
        again = [Measurement("step", 3, {"loss": 30.0}), Measurement("step", 3, {"loss": 31.0})]
        attempts.record(session, second, lease=30, measurements=again)
    with database.reading() as session:
        rows = metrics.of(session, job_id, "step")
        assert [(m.step, m.values["loss"], m.attempt) for m in rows] == [(1, 1.0, 1), (2, 2.0, 1), (3, 31.0, 2)]
        assert [m.step for m in metrics.of(session, job_id, "step", after_step=2)] == [3]
        assert [m.kind for m in metrics.of(session, job_id)] == ["before", "step", "step", "step"]


def fenced_writes() -> dict[str, Callable[..., object]]:
    def finish(session: Any, claim: Claim) -> object:
        def sign(*_: object) -> dict[ArtifactKind, StoredFile]:
            raise AssertionError("an attempt that lost its lease was signed")

        return attempts.finish(session, claim, verdict="passed", files={"report": [stored("report.json")]}, sign=sign)

    note, measured = Note("phase", {}), Measurement("step", 1, {"loss": 1.0})
    return {
        "record": lambda s, c: attempts.record(s, c, lease=30, progress={}, notes=[note], measurements=[measured]),
        "save_checkpoint": lambda s, c: attempts.save_checkpoint(s, c, 9, [stored("w", sealed=True)]),
        "discard_checkpoint": lambda s, c: attempts.discard_checkpoint(s, c, 1),
        "release": lambda s, c: attempts.release(s, c, reason="late", counts=True),
        "cancelled": attempts.cancelled,
        "fail": lambda s, c: attempts.fail(s, c, Diverged(3, float("nan")).as_dict()),
        "finish": finish,
    }


@pytest.mark.parametrize("write", fenced_writes())
@pytest.mark.parametrize("end", ["requeued", "claimed again", "cancelled"])
def test_an_attempt_that_lost_its_lease_writes_nothing(
    database: Database, job_id: str, take: Take, write: str, end: str
) -> None:
    old = take(job_id, lease=0)
    with database.transaction() as session:
        attempts.save_checkpoint(session, old, 1, [stored("w", "b", sealed=True)])
        if end == "cancelled":
            life.request_cancel(session, job_id, "key_a")
        assert len(sweep.expired(session)) == 1
    if end == "claimed again":
        take(job_id, worker="w2")

    def state() -> object:
        with database.reading() as session:
            job = jobs.get(session, job_id)
            return (
                (job.status, job.attempt, job.counted, job.progress, job.lease_until, job.error),
                len(events.since(session, job_id)),
                len(audit.about(session, job_id)),
                len(metrics.of(session, job_id)),
                [(a.name, a.digest) for a in artifacts.of(session, job_id)],
            )

    before = state()
    with pytest.raises(LeaseLost, match=f"Attempt 1 no longer holds job {job_id}"), database.transaction() as session:
        fenced_writes()[write](session, old)
    assert state() == before


def test_leaving_does_not_count_toward_the_cap_but_dying_does(database: Database, job_id: str, take: Take) -> None:
    for _ in range(4):
        claim = take(job_id)
        with database.transaction() as session:
            assert attempts.release(session, claim, reason="SIGTERM", counts=False, cap=2).status == "queued"
    for expected in ("queued", "failed"):
        claim = take(job_id)
        with database.transaction() as session:
            assert attempts.release(session, claim, reason="exit 70", counts=True, cap=2).status == expected
    with database.reading() as session:
        outcomes = [(a.number, a.outcome, a.reason) for a in attempts_of(session, job_id)]
        assert outcomes[3:] == [(4, "queued", "SIGTERM"), (5, "queued", "exit 70"), (6, "failed", "exit 70")]
        assert all(a.ended_at is not None and a.ended_at >= a.started_at for a in attempts_of(session, job_id))


def test_a_released_job_that_was_to_be_cancelled_is_cancelled(database: Database, job_id: str, take: Take) -> None:
    claim = take(job_id)
    with database.transaction() as session:
        life.request_cancel(session, job_id, "key_a")
    with database.transaction() as session:
        assert attempts.release(session, claim, reason="SIGTERM", counts=False).status == "cancelled"


def test_finish_signs_and_stores_in_one_transaction(database: Database, job_id: str, take: Take) -> None:
    claim = take(job_id)
    files: dict[ArtifactKind, list[StoredFile]] = {
        "report": [stored("report.json", "d")],
        "model": [stored("model/model.safetensors", "e")],
    }

    def fails(*_: object) -> dict[ArtifactKind, StoredFile]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), database.transaction() as session:
        attempts.finish(session, claim, verdict="passed", files=files, sign=fails)
    with database.reading() as session:
        assert jobs.get(session, job_id).status == "running"
        assert artifacts.of(session, job_id) == []
    with database.transaction() as session:
        envelope = stored("report.dsse.json", "f")
        attempts.finish(session, claim, verdict="not_passed", files=files, sign=lambda *_: {"envelope": envelope})
    with database.reading() as session:
        job = jobs.get(session, job_id)
        assert (job.status, job.verdict, job.lease_until, job.leased_by) == ("succeeded", "not_passed", None, None)
        assert job.finished_at is not None
        assert [(a.kind, a.name) for a in artifacts.of(session, job_id)] == [
            ("model", "model/model.safetensors"),
            ("envelope", "report.dsse.json"),
            ("report", "report.json"),
        ]
        assert artifacts.named(session, job_id, "report.json").digest == "d" * 64
        assert events.since(session, job_id)[-1].data["verdict"] == "not_passed"


def test_a_failure_carries_its_error(database: Database, job_id: str, take: Take) -> None:
    claim = take(job_id)
    error = Diverged(7, float("nan")).as_dict()
    with database.transaction() as session:
        attempts.fail(session, claim, error)
    with database.reading() as session:
        job = jobs.get(session, job_id)
        assert (job.status, job.error) == ("failed", error)
        assert events.since(session, job_id)[-1].data["code"] == "diverged"


def test_events_are_read_forward_without_gaps_while_many_write(
    database: Database, spec: JobSpec, key: ApiKey, take: Take
) -> None:
    with database.transaction() as session:
        made = [jobs.create(session, spec, key_id=key.id)[0].id for _ in range(2)]
    claims = [take(job_id) for job_id in made]
    seen: list[tuple[int, int]] = []

    def act(number: int) -> None:
        if number == 0:
            last = 0
            deadline = time.monotonic() + 60
            while len(seen) < 40:
                assert time.monotonic() < deadline, f"{len(seen)} of 40 events were seen"
                with database.reading() as session:
                    for event in events.since(session, made[0], last, limit=7):
                        last = event.id
                        if event.kind == "note":
                            seen.append((event.id, event.data["writer"]))
            return
        for _ in range(10):
            with database.transaction() as session:
                # Two writers of one job, and two of another in between: ids come from one sequence.
                attempts.record(session, claims[number % 2], lease=30, notes=[Note("note", {"writer": number})] * 2)

    at_once(5, act)
    assert [number for number, _ in seen] == sorted(number for number, _ in seen)
    assert {writer for _, writer in seen} == {2, 4}
    with database.reading() as session:
        assert checkpoints.of(session, made[0]) == []
        assert len([e for e in events.since(session, made[0]) if e.kind == "note"]) == 40
