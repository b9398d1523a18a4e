"""What a finished run has cost, where that says something about others: not where it was resumed or shared."""

from collections.abc import Mapping
from typing import Any

from api.store.claims import Claim
from api.store.runs import Cost
from core.report.schema import DataUsed, Report
from core.spec.cost import work
from core.spec.job import parse


def of(report: Report, claim: Claim, done: Mapping[str, Any], phases: Mapping[str, float]) -> Cost | None:
    """`done` is what the engine said at its end, `phases` the seconds of each of its phases."""
    held = done.get("memory")
    counted = claim.model.parameters if claim.model else None
    if claim.checkpoint is not None or report.training.shared_with or not held or not counted:
        return None
    spec = parse(claim.spec)
    sets = {"forget": report.forget, "retain": report.retain, **report.beside}
    rows = {name: used.rows for name, used in sets.items() if isinstance(used, DataUsed)}
    amount = work(spec, rows, report.training.steps)
    return Cost(
        device=report.environment.device,
        method=spec.method.name,
        optimizer=spec.optimizer.name,
        parameters=counted,
        rows_trained=amount.trained,
        train_seconds=report.training.seconds,
        rows_scored=amount.scored,
        score_seconds=sum(phases.get(phase, 0.0) for phase in ("score_before", "score_after")),
        seconds=sum(phases.values()),
        memory_bytes=held["peak"],
        idle_bytes=held["idle"],
    )
