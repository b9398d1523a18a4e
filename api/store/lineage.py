"""The line of a model: each was made from the one before it by a job, back to a registered folder."""

from collections.abc import Sequence

from sqlalchemy import literal, or_, select
from sqlalchemy.orm import Session, aliased, defer

from api.store.tables import Alias, Job, Model

MOST = 1000  # models of a line that are followed
_SHOWN = 100  # children that are listed


def line(session: Session, model: Model, most: int = MOST) -> list[Model]:
    """The model, the one that it was made from, and so on: at most so many, the root last where it is reached."""
    back = (
        select(Model.id, Model.parent_id, literal(0).label("steps"))
        .where(Model.id == model.id)
        .cte("back", recursive=True)
    )
    older = aliased(Model)
    further = select(older.id, older.parent_id, back.c.steps + 1).join(back, older.id == back.c.parent_id)
    whole = back.union_all(further.where(back.c.steps < most - 1))
    query = select(Model).join(whole, whole.c.id == Model.id).order_by(whole.c.steps)
    return list(session.scalars(query))


def removed_before(session: Session, model: Model, most: int) -> tuple[list[Job], int]:
    """The succeeded jobs that made the model and those that it goes back to, the newest first, and how many in all;
    with each the jobs that shared its run. At most `most` of them are returned."""
    own = {found.job_id for found in line(session, model) if found.job_id}
    led = {leader for leader in session.scalars(select(Job.led_by).where(Job.id.in_(own))) if leader}
    query = (
        select(Job)
        .where(or_(Job.id.in_(own | led), Job.led_by.in_(own | led)), Job.status == "succeeded")
        .order_by(Job.finished_at.desc(), Job.id.desc())
        .options(defer(Job.key))
    )
    found = session.scalars(query).all()
    return list(found[:most]), len(found)


def children(session: Session, model_id: str) -> Sequence[str]:
    """Ids of the models that were made from it, the newest first; at most 100."""
    query = select(Model.id).where(Model.parent_id == model_id).order_by(Model.id.desc()).limit(_SHOWN)
    return session.scalars(query).all()


def aliases(session: Session, model_ids: Sequence[str]) -> dict[str, list[str]]:
    """By model, the names that stand for it now; those for which none does are left out."""
    found: dict[str, list[str]] = {}
    for alias in session.scalars(select(Alias).where(Alias.model_id.in_(model_ids)).order_by(Alias.name)):
        found.setdefault(alias.model_id, []).append(alias.name)
    return found
