"""The report as it is handed out: what the engine measured, with who asked for it, written plainly and signed."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.store import asked, chain
from api.store.session import now
from api.store.tables import Dataset, Job, JobDataset
from core.report.schema import Absent, DataUsed, Report, Requested
from core.report.sign import sign

PLAIN = "report.json"
ENVELOPE = "report.dsse.json"
# Said in the report itself: a later request on the same set is not known yet when it is signed.
_UNLESS = (
    "this or another request that names the set is under legal hold, has not ended, or last ran less than {:g} days "
    "before"
)
_WHY_NOT = {
    "reference": "the request gave none",
    "approved_by": "the service asked for no approval",
    "approved_at": "the service asked for no approval",
}


def write(
    session: Session, job: Job, measured: Report, signing_key: bytes, out: Path, *, retention_days: float
) -> Report:
    """Write `report.json` and `report.dsse.json` into `out`, and return what both say.

    Called within the finishing transaction, behind its fence: an attempt that lost its lease signs nothing.
    """
    # Whoever has the report can later tell that nothing up to here was cut off the log or changed.
    facts = {**asked.of(session, job), "audit_head": vars(chain.seal(session))}
    facts["data_destroyed_by"] = now(session) + timedelta(days=retention_days)
    facts["data_destroyed_unless"] = _UNLESS.format(retention_days)
    report = measured.model_copy(update={"request": _requested(facts), **_committed(session, job, measured)})
    (out / PLAIN).write_text(report.model_dump_json(indent=2))
    (out / ENVELOPE).write_bytes(sign(report, signing_key))
    return report


def _committed(session: Session, job: Job, report: Report) -> dict[str, Any]:
    """The report's sets, each with how many records its commitment is to: without that number a proof could be made to
    speak of another place of the same tree."""
    named = select(Dataset.commitment, Dataset.rows).join(JobDataset, JobDataset.dataset_id == Dataset.id)
    rows = {found.commitment: found.rows for found in session.execute(named.where(JobDataset.job_id == job.id))}

    def told(used: DataUsed | Absent) -> DataUsed | Absent:
        if isinstance(used, Absent) or used.commitment not in rows:
            return used
        return used.model_copy(update={"committed": rows[used.commitment]})

    beside = {name: told(used) for name, used in report.beside.items()}
    return {"forget": told(report.forget), "retain": told(report.retain), "beside": beside}


def _requested(facts: Mapping[str, Any]) -> Requested:
    lacking = {name: Absent(absent=why) for name, why in _WHY_NOT.items() if facts.get(name) is None}
    return Requested.model_validate({name: told(value) for name, value in facts.items()} | lacking)


def told(value: Any) -> Any:
    """Times as a report tells them: RFC 3339, UTC, to the second."""
    return value.isoformat(timespec="seconds").replace("+00:00", "Z") if isinstance(value, datetime) else value
