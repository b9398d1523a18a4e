"""What was measured of a job: before, after, and on the way."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query

from api import schemas
from api.deps import MOST, Parts
from api.sight import Seen
from api.store import metrics
from api.store.records import Metric

router = APIRouter(prefix="/jobs/{job_id}/metrics", tags=["jobs"])


@router.get("")
def measured(
    service: Parts,
    sight: Seen,
    job_id: str,
    after_step: Annotated[int, Query(ge=-1, le=MOST)] = -1,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
) -> schemas.Metrics:
    """Scores before and after training, their difference, and the training curve beyond a step."""
    with service.database.reading() as session:
        sight.job(session, job_id)
        scores = {row.kind: row.values for row in metrics.of(session, job_id, "before", "after")}
        curve = metrics.of(session, job_id, "step", after_step=after_step, limit=limit + 1)
        watch = metrics.of(session, job_id, "watch", after_step=after_step, limit=limit + 1)
    more = len(curve) > limit
    if more:
        # The rest comes with the steps it belongs to: pages must not overlap.
        watch = [row for row in watch if row.step <= curve[limit - 1].step]
    before, after = scores.get("before", {}), scores.get("after", {})
    return schemas.Metrics(
        before=before,
        after=after,
        deltas=_deltas(before, after),
        curve=_points(curve[:limit]),
        watch=_points(watch),
        has_more=more,
    )


def _points(rows: Sequence[Metric]) -> list[schemas.Curve]:
    return [schemas.Curve(step=row.step, values=row.values) for row in rows]


def _deltas(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: after[name]["value"] - before[name]["value"]
        for name in before.keys() & after.keys()
        if "value" in before[name] and "value" in after[name]
    }
