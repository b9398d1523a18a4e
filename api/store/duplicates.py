"""Whether the same records were forgotten before from the same line of models. Told, not refused: it may be meant."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.store import references
from api.store.tables import Alias, Dataset, Job, Model


def warnings(session: Session, spec: Mapping[str, Any]) -> list[str]:
    """A sentence where a job that succeeded has forgotten the same set from this model, its forebears or its kin.

    Sets are compared by their keyed fingerprint, which knows no order; a destroyed set has none any more.
    """
    upload, model_id = references.uploads(spec).get("forget"), target(session, spec)
    if upload is None or model_id is None:
        return []
    asked = session.get_one(Dataset, upload)
    model = session.get_one(Model, model_id)
    if asked.fingerprint is None:
        return []
    line = model.root_id or model.id
    same = (
        select(Job.id)
        .join(Dataset, Dataset.id == Job.forget_id)
        .join(Model, Model.id == Job.model_id)
        .where(
            Dataset.fingerprint == asked.fingerprint,
            Job.status == "succeeded",
            func.coalesce(Model.root_id, Model.id) == line,
        )
    )
    found = session.scalars(same.order_by(Job.id.desc()).limit(1)).one_or_none()
    return [] if found is None else [f"Job {found} has already forgotten the same records from this line of models."]


def target(session: Session, spec: Mapping[str, Any]) -> str | None:
    """Id of the model that a request would begin at now; None where it names a path."""
    named = references.models(spec)["model"]
    if "alias" in named:
        return session.scalar(select(Alias.model_id).where(Alias.name == named["alias"]))
    return named.get("id")
