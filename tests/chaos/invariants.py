"""What must hold whatever died: read from the database and the artifact store alone, once the dust has settled."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.store import chain
from api.store.blobs import DRAWERS, Blobs
from api.store.life import MOVES, TERMINAL
from api.store.records import Artifact, Attempt, AuditEntry, Event, Metric
from api.store.session import Database, now
from api.store.tables import Alias, Job, Promotion
from worker.orphans import remove_orphans

# What a job that has succeeded has exactly one of, and every other none.
EVIDENCE = ("report", "envelope")


def hold(database: Database, blobs: Blobs) -> None:
    """No job lost, none run twice to an effect, no half artifact visible, history and audit of one mind."""
    with database.reading() as session:
        for job in session.scalars(select(Job).order_by(Job.id)).all():
            try:
                _not_lost(session, job)
                history = _of(session, Event, job.id)
                _history_is_one_line(job, history)
                _attempts_agree(job, _of(session, Attempt, job.id))
                _fenced(job, history, _of(session, Metric, job.id))
                _one_effect(job, history, _of(session, Artifact, job.id))
                _audit_agrees(session, job, history)
            except AssertionError as error:
                raise AssertionError(f"{job.id}, {job.status}, attempt {job.attempt}: {error}") from error
        for alias in session.scalars(select(Alias)):
            _one_after_the_other(session, alias)
        artifacts = session.scalars(select(Artifact)).all()
    _whole(blobs, artifacts)


def nothing_unaccounted(database: Database, blobs: Blobs) -> int:
    """Once all work has ended, what no row refers to is found and removed, and only that. Returns how much it was."""
    removed = sum(len(remove_orphans(database, blobs, drawer, -1.0)) for drawer in range(DRAWERS))
    with database.reading() as session:
        _whole(blobs, session.scalars(select(Artifact)).all())
    return removed


def sealed_whole(database: Database) -> None:
    """The audit log is one chain from its first entry to its last."""
    with database.transaction() as session:
        chain.seal(session)
    with database.reading() as session:
        at = chain.BEGINNING
        for position, entry in enumerate(session.execute(chain.columns().order_by(AuditEntry.position)), 1):
            at = chain.link(at, position, entry)
            assert (entry.position, entry.hash) == (position, at)


def _of(session: Session, table: type, job_id: str) -> Sequence:
    order = {Event: "id", Attempt: "number", Artifact: "id", Metric: "step"}[table]
    return session.scalars(select(table).where(table.job_id == job_id).order_by(getattr(table, order))).all()


def _not_lost(session: Session, job: Job) -> None:
    if job.status == "running":
        assert job.leased_by, "it runs under nobody"
        assert job.lease_until > now(session), "its lease ran out and nobody took it"
    else:
        assert job.status in TERMINAL | {"queued", "awaiting_approval"}
        assert (job.leased_by, job.lease_until) == (None, None), "a lease is left"
    assert (job.finished_at is not None) == (job.status in TERMINAL)
    assert (job.error is not None) == (job.status == "failed")


def _history_is_one_line(job: Job, history: Sequence[Event]) -> None:
    moves = [(event.data["from"], event.data["to"]) for event in history if event.kind == "status"]
    assert moves[0][0] is None, moves
    for (_, before), (start, end) in pairwise(moves):
        assert start == before, moves
        assert end in MOVES[start], moves
    assert moves[-1][1] == job.status, moves
    assert sum(end == "running" for _, end in moves) == job.attempt, moves


def _attempts_agree(job: Job, attempts: Sequence[Attempt]) -> None:
    assert [attempt.number for attempt in attempts] == list(range(1, job.attempt + 1))
    for attempt in attempts:
        running = job.status == "running" and attempt.number == job.attempt
        assert (attempt.ended_at is None) == running, f"attempt {attempt.number} ended at {attempt.ended_at}"
        assert running or attempt.outcome in MOVES["running"], attempt.outcome
    assert sum(attempt.outcome == "succeeded" for attempt in attempts) == (job.status == "succeeded")


def _fenced(job: Job, history: Sequence[Event], metrics: Sequence[Metric]) -> None:
    """Nobody wrote under an attempt after the next one had begun."""
    numbers = [event.attempt for event in history]
    assert numbers == sorted(numbers), f"an earlier attempt wrote late: {numbers}"
    assert all(0 < metric.attempt <= job.attempt for metric in metrics)


def _one_effect(job: Job, history: Sequence[Event], artifacts: Sequence[Artifact]) -> None:
    kinds = Counter(artifact.kind for artifact in artifacts)
    done = job.status == "succeeded"
    assert [kinds[kind] for kind in EVIDENCE] == [int(done)] * len(EVIDENCE), kinds
    assert (kinds["model"] > 0) == done, kinds
    assert (job.verdict is not None) == done
    assert sum(event.kind == "status" and event.data["to"] == "succeeded" for event in history) == done
    if done:
        assert kinds["checkpoint"] == 0, kinds
        assert {artifact.attempt for artifact in artifacts} == {job.attempt}
    steps = {artifact.step for artifact in artifacts if artifact.kind == "checkpoint"}
    assert len(steps) <= 2, steps


def _audit_agrees(session: Session, job: Job, history: Sequence[Event]) -> None:
    told = [event.data["to"] for event in history if event.kind == "status" and event.data["from"] is not None]
    query = select(AuditEntry).where(AuditEntry.subject == job.id).order_by(AuditEntry.id)
    noted = [entry.facts["to"] for entry in session.scalars(query) if "to" in entry.facts]
    assert noted == told


def _one_after_the_other(session: Session, alias: Alias) -> None:
    """Jobs on an alias never ran at once, and none of its changes was lost."""
    query = select(Attempt).join(Job, Job.id == Attempt.job_id).where(Job.alias == alias.name)
    for one, following in pairwise(session.scalars(query.order_by(Attempt.started_at)).all()):
        assert one.ended_at is not None, f"{one.job_id} and {following.job_id} run at once on {alias.name}"
        assert one.ended_at <= following.started_at, f"{one.job_id} and {following.job_id} ran at once on {alias.name}"
    changes = session.scalars(select(Promotion).where(Promotion.alias == alias.name).order_by(Promotion.id)).all()
    for before, after in pairwise(changes):
        assert after.before_id == before.model_id, f"a change of {alias.name} was lost"
    assert changes[-1].model_id == alias.model_id


def _whole(blobs: Blobs, artifacts: Sequence[Artifact]) -> None:
    for row in artifacts:
        content = hashlib.sha256()
        size = 0
        with blobs.open(row.digest) as file:
            while piece := file.read(1 << 20):
                content.update(piece)
                size += len(piece)
        assert (content.hexdigest(), size) == (row.digest, row.size), row.name
