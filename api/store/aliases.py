"""Aliases: names that stand for one model at a time. Each change is a promotion, and promotions can be undone in turn.

Whoever changes an alias, or begins a job on it, holds its row until the transaction ends.
"""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.store import audit, events, keys, models
from api.store.errors import Conflict, NotFound, NotPassed
from api.store.lookup import storable
from api.store.session import now
from api.store.tables import Alias, ApiKey, Job, Model, Promotion
from core.errors import Problem, SpecError

_SHOWN = 100  # promotions of an alias, and aliases in a message


def every(session: Session) -> Sequence[Alias]:
    """All aliases, by name."""
    return session.scalars(select(Alias).order_by(Alias.name)).all()


def get(session: Session, name: str, *, lock: bool = False) -> Alias:
    """The alias; with `lock` nobody else changes it until the transaction ends. Raises NotFound."""
    query = select(Alias).where(Alias.name == name).execution_options(populate_existing=True)
    if lock:
        query = query.with_for_update()
    found = session.scalars(query).one_or_none() if "\0" not in name else None
    if found is None:
        raise NotFound(f"There is no alias {name!r}.")
    return found


def history(session: Session, name: str) -> Sequence[Promotion]:
    """Its changes, the newest first; at most 100."""
    query = select(Promotion).where(Promotion.alias == name).order_by(Promotion.id.desc()).limit(_SHOWN)
    return session.scalars(query).all()


def unknown(session: Session, name: str) -> str | None:
    """A sentence that names the aliases there are, where this is none of them."""
    if session.get(Alias, name) is not None:
        return None
    there = ", ".join(alias.name for alias in every(session)[:_SHOWN]) or "none yet; PUT /aliases/{name} makes one"
    return f"There is no alias '{name}'. Allowed: {there}."


def promote(
    session: Session,
    name: str,
    model_id: str,
    *,
    reason: str,
    actor: str,
    key_id: str | None = None,
    force: bool = False,
) -> tuple[Alias, bool]:
    """Let the alias stand for this model from now on; True if it is new. For the same model again nothing is done.

    Raises SpecError where there is no such model, and NotPassed for one that was made by a job whose verdict is not
    `passed`, unless it is forced.
    """
    storable(reason, "reason")
    model = models.usable(session, model_id)
    if model is None:
        said = f"There is no model '{model_id}', or it is deleted. GET /models lists those there are."
        raise SpecError([Problem("model", model_id, said)])
    verdict = session.get_one(Job, model.job_id).verdict if model.job_id else "passed"
    if verdict != "passed" and not force:
        raise NotPassed(
            f"Model {model.id} was made by job {model.job_id}, whose verdict is {verdict}. "
            "Set force to promote it all the same.",
            param="model",
        )
    alias, created = _entered(session, name, model.id)
    if not created and alias.model_id == model.id:
        return alias, False
    _change(session, alias, model.id, before=None if created else alias.model_id, actor=actor, reason=reason)
    facts = {"model": model.id, "reason": reason, "forced": verdict != "passed"}
    audit.append(session, actor=actor, key_id=key_id, action="alias.promoted", subject=name, facts=facts)
    return alias, created


def roll_back(session: Session, name: str, *, reason: str, actor: str, key_id: str | None = None) -> Alias:
    """Undo the newest promotion that is not undone yet.

    Raises NotFound, and Conflict where none is left or where the model before it is deleted.
    """
    storable(reason, "reason")
    alias = get(session, name, lock=True)
    newest = select(Promotion).where(Promotion.alias == name, Promotion.undone_at.is_(None))
    last = session.scalars(newest.order_by(Promotion.id.desc()).limit(1)).one_or_none()
    if last is None or last.before_id is None:
        raise Conflict(f"Alias {name!r} has stood for no other model before {alias.model_id}: nothing can be undone.")
    if models.usable(session, last.before_id) is None:
        raise Conflict(f"Model {last.before_id}, for which alias {name!r} stood before, is deleted.")
    facts = {"model": last.before_id, "from": alias.model_id, "reason": reason}
    last.undone_at = alias.changed_at = now(session)
    alias.model_id = last.before_id
    audit.append(session, actor=actor, key_id=key_id, action="alias.rolled_back", subject=name, facts=facts)
    return alias


def mover(session: Session, job_ids: Sequence[str]) -> str | None:
    """The first of the jobs that was asked for with a key that may promote; a key's scopes never change."""
    asked = select(Job.id, ApiKey).join(ApiKey, ApiKey.id == Job.key_id).where(Job.id.in_(job_ids))
    may = {job_id for job_id, key in session.execute(asked) if keys.may(key, "models:write")}
    return next((job_id for job_id in job_ids if job_id in may), None)


def move_on(session: Session, job: Job, made: Model, *, actor: str) -> None:
    """Let the alias that the job names stand for what the job has made, unless somebody moved it meanwhile, or the key
    that asked for the job may not move it.

    The caller holds the job's lock. Either way the job's history and the audit log tell of it.
    """
    assert job.alias is not None
    alias = get(session, job.alias, lock=True)
    told, facts = {"alias": alias.name, "model": made.id}, {"model": made.id, "job": job.id}
    why = None
    if alias.model_id != job.model_id:
        why = "it was moved while the job ran"
    elif mover(session, [job.id]) is None:
        why = "the key that asked for the job lacks the scope models:write"
    if why is not None:
        more = {"stands_for": alias.model_id, "reason": why}
        events.append(session, job, "not_promoted", told | more)
        audit.append(session, actor=actor, action="alias.not_promoted", subject=alias.name, facts=facts | more)
        return
    _change(session, alias, made.id, before=alias.model_id, actor=f"job:{job.id}", reason="verdict passed")
    events.append(session, job, "promoted", told)
    audit.append(session, actor=actor, action="alias.promoted", subject=alias.name, facts=facts)


def _entered(session: Session, name: str, model_id: str) -> tuple[Alias, bool]:
    """The alias, held; True if it was made for this."""
    try:
        return get(session, name, lock=True), False
    except NotFound:
        pass
    made = Alias(name=name, model_id=model_id, changed_at=now(session))
    try:
        with session.begin_nested():
            session.add(made)
    except IntegrityError:
        # Somebody made it at the same time, and has committed by now.
        return get(session, name, lock=True), False
    return made, True


def _change(session: Session, alias: Alias, model_id: str, *, before: str | None, actor: str, reason: str) -> None:
    alias.model_id, alias.changed_at = model_id, now(session)
    session.add(
        Promotion(
            alias=alias.name,
            model_id=model_id,
            before_id=before,
            actor=actor,
            reason=reason,
            at=alias.changed_at,
        )
    )
    session.flush()
