"""Whether the same records were forgotten before from the same line of models. Told, not refused: it may be meant."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.store import references
from api.store.tables import Alias, Dataset, Job, Model


def warnings(session: Session, specs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """For each spec a sentence where a job that succeeded has forgotten the same set from this model, its forebears or
    its kin.

    Sets are compared by their keyed fingerprint, which knows no order; a destroyed set has none any more.
    """
    asked = [_set_and_line(session, spec) for spec in specs]
    prints = {pair[0] for pair in asked if pair is not None}
    if not prints:
        return [[] for _ in asked]
    line = func.coalesce(Model.root_id, Model.id)
    same = (
        select(Dataset.fingerprint, line, func.max(Job.id))
        .join(Dataset, Dataset.id == Job.forget_id)
        .join(Model, Model.id == Job.model_id)
        .where(Dataset.fingerprint.in_(prints), Job.status == "succeeded")
        .group_by(Dataset.fingerprint, line)
    )
    found = {(mark, of): job for mark, of, job in session.execute(same)}
    jobs = [None if pair is None else found.get(pair) for pair in asked]
    return [[] if job is None else [_SAID.format(job=job)] for job in jobs]


_SAID = "Job {job} has already forgotten the same records from this line of models."


def _set_and_line(session: Session, spec: Mapping[str, Any]) -> tuple[str, str] | None:
    upload, model_id = references.uploads(spec).get("forget"), target(session, spec)
    if upload is None or model_id is None:
        return None
    mark, model = session.get_one(Dataset, upload).fingerprint, session.get_one(Model, model_id)
    return None if mark is None else (mark, model.root_id or model.id)


def target(session: Session, spec: Mapping[str, Any]) -> str | None:
    """Id of the model that a request would begin at now; None where it names a path."""
    named = references.models(spec)["model"]
    if "alias" in named:
        return session.scalar(select(Alias.model_id).where(Alias.name == named["alias"]))
    return named.get("id")
