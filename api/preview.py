"""What a request would be and what it may cost, without a trace of it being left."""

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.orm import Session

from api import job_schemas
from api.store import datasets, duplicates, jobs, models, runs
from api.store.session import now
from api.store.tables import ApiKey
from core.spec.cost import work
from core.spec.job import JobSpec
from core.spec.sources import JsonLines, Source, Upload

_MOST_READ = 256 << 20  # bytes of a file whose lines are counted while a caller waits


def lines_in_files(spec: JobSpec) -> dict[str, int | None]:
    """Records of each set that is a file of JSON lines; None where counting them would take too long. It may take a
    while, in which no transaction should be open."""
    files = {name: source for name, source in spec.data.sources().items() if isinstance(source, JsonLines)}
    return {name: _lines(Path(source.path)) for name, source in files.items()}


def preview(session: Session, spec: JobSpec, caller: ApiKey, lines: Mapping[str, int | None]) -> job_schemas.Validation:
    """`lines` is what `lines_in_files` has counted. Raises SpecError as creating the job would."""
    resolved = jobs.checked(session, spec, now(session), caller.principal_id, caller.id)
    asker = (caller.principal_id, caller.id)
    rows = {name: _rows(session, source, lines.get(name)) for name, source in spec.data.sources().items()}
    return job_schemas.Validation(
        spec=resolved,
        rows=rows,
        warnings=[*spec.foreseen(), *_of_uploads(session, spec), *duplicates.warnings(session, [resolved], [asker])[0]],
        estimate=_estimate(session, spec, rows, duplicates.target(session, resolved)),
    )


def _rows(session: Session, source: Source, lines: int | None) -> int | None:
    """Records of a set that are used; None where counting them would need the engine, or too long."""
    found = datasets.get(session, source.dataset).rows if isinstance(source, Upload) else lines
    return found if source.rows is None or found is None else min(found, source.rows)


def _lines(path: Path) -> int | None:
    try:
        if path.stat().st_size > _MOST_READ:
            return None
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    except OSError:
        return None


def _of_uploads(session: Session, spec: JobSpec) -> list[str]:
    uploads = {name: source for name, source in spec.data.sources().items() if isinstance(source, Upload)}
    return [
        f"data.{name}: {warning}"
        for name, source in uploads.items()
        for warning in datasets.get(session, source.dataset).warnings
    ]


def _estimate(
    session: Session, spec: JobSpec, rows: Mapping[str, int | None], model_id: str | None
) -> job_schemas.Estimate:
    known = {name: count for name, count in rows.items() if count is not None}
    if unknown := sorted(rows.keys() - known.keys()):
        reason = f"How many records there are is known only to the engine for: {', '.join(unknown)}."
        return job_schemas.Estimate(reason=reason)
    amount = work(spec, known)
    found = runs.estimate(
        session,
        method=spec.method.name,
        optimizer=spec.optimizer.name,
        parameters=models.get(session, model_id).parameters if model_id else None,
        rows_trained=amount.trained,
        rows_scored=amount.scored,
    )
    return job_schemas.Estimate(reason=found) if isinstance(found, str) else job_schemas.Estimate(**vars(found))
