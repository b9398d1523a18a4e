"""The line of a model: each was made from the one before it by a job, back to a registered folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, literal, or_, select
from sqlalchemy.orm import Session, aliased

from api.store.records import Artifact
from api.store.tables import Alias, Dataset, Job, Model

MOST = 1000  # models of a line that are followed
_SHOWN = 100  # children that are listed


@dataclass(frozen=True)
class Removed:
    """A job that has removed something: its forget set, where that was an upload, and the blob of its report."""

    job_id: str
    forget: Dataset | None = field(repr=False)
    report: str | None


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


def removed_before(session: Session, model: Model, most: int) -> tuple[list[Removed], int]:
    """What succeeded jobs removed that made the model and those that it goes back to, and how many such jobs there are.

    With each come the jobs that shared its run. At most `most` of them are returned, the newest first.
    """
    own = {found.job_id for found in line(session, model) if found.job_id}
    leaders = own | {leader for leader in session.scalars(select(Job.led_by).where(Job.id.in_(own))) if leader}
    of_them = (or_(Job.id.in_(leaders), Job.led_by.in_(leaders)), Job.status == "succeeded")
    found = (
        select(Job.id, Dataset, Artifact.digest)
        .outerjoin(Dataset, Dataset.id == Job.forget_id)
        .outerjoin(Artifact, (Artifact.job_id == Job.id) & (Artifact.kind == "report"))
        .where(*of_them)
        .order_by(Job.finished_at.desc(), Job.id.desc())
        .limit(most)
    )
    count = session.scalar(select(func.count()).select_from(Job).where(*of_them)) or 0
    return [Removed(*row) for row in session.execute(found)], count


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
