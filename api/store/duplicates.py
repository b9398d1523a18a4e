"""Whether the same records were forgotten before from the same line of models. Told, not refused: it may be meant."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.store import keys, references
from api.store.tables import Alias, ApiKey, Dataset, Job, Model


def warnings(
    session: Session, specs: Sequence[Mapping[str, Any]], askers: Sequence[tuple[str, str]]
) -> list[list[str]]:
    """For each spec a sentence where a job that succeeded has forgotten the same set from this model, its forebears or
    its kin, and the asker may see that job: whoever guesses at a set must not learn that somebody asked for it.

    An asker is the id of a principal, and of its key. Sets are compared by their keyed fingerprint, which knows no
    order; a destroyed set has none any more.
    """
    asked = [_set_and_line(session, spec) for spec in specs]
    prints = {pair[0] for pair in asked if pair is not None}
    if not prints:
        return [[] for _ in asked]
    line = func.coalesce(Model.root_id, Model.id)
    same = (
        select(Dataset.fingerprint, line, Job.principal_id, func.max(Job.id))
        .join(Dataset, Dataset.id == Job.forget_id)
        .join(Model, Model.id == Job.model_id)
        .where(Dataset.fingerprint.in_(prints), Job.status == "succeeded")
        .group_by(Dataset.fingerprint, line, Job.principal_id)
    )
    found: dict[tuple[str | None, str] | None, dict[str, str]] = {}
    for mark, of, owner, job in session.execute(same):
        found.setdefault((mark, of), {})[owner] = job
    return [_told(session, found.get(pair, {}), *asker) for pair, asker in zip(asked, askers, strict=True)]


def _told(session: Session, jobs: Mapping[str, str], principal_id: str, key_id: str) -> list[str]:
    """What is told of the newest of these jobs, by principal, that the asker may see."""
    # The key is looked at only where there are some: nearly every set is new.
    all_seen = bool(jobs) and keys.sees_all(session.get_one(ApiKey, key_id))
    seen = [job for owner, job in jobs.items() if all_seen or owner == principal_id]
    return [f"Job {max(seen)} has already forgotten the same records from this line of models."] if seen else []


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
