"""Measured values of a job: the training curve, the looks along the way, and the scores before and after."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.store.columns import INSERT
from api.store.records import Metric, MetricKind


@dataclass(frozen=True)
class Measurement:
    """`values` by name at an optimizer step; scores `before` and `after` stand at step 0."""

    kind: MetricKind
    step: int
    values: Mapping[str, Any]


def upsert(session: Session, job_id: str, attempt: int, measurements: Iterable[Measurement]) -> None:
    """Write measurements. A step that a resumed run repeats replaces what was measured there before."""
    # One statement may not touch a row twice, so the last value of a step wins already here.
    rows = {
        (m.kind, m.step): {
            "job_id": job_id,
            "kind": m.kind,
            "step": m.step,
            "attempt": attempt,
            "values": dict(m.values),
        }
        for m in measurements
    }
    if not rows:
        return
    statement = INSERT[session.get_bind().dialect.name](Metric).values(list(rows.values()))
    new = statement.excluded
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["job_id", "kind", "step"], set_={"attempt": new["attempt"], "values": new["values"]}
        )
    )


def of(
    session: Session, job_id: str, *kinds: MetricKind, after_step: int = -1, limit: int | None = None
) -> Sequence[Metric]:
    """The job's measurements of these kinds (all, if none is named) beyond a step, ordered by kind and step."""
    query = select(Metric).where(Metric.job_id == job_id, Metric.step > after_step).order_by(Metric.kind, Metric.step)
    if kinds:
        query = query.where(Metric.kind.in_(kinds))
    return session.scalars(query.limit(limit)).all()
