"""Models that jobs may start from, pinned by digest: registered folders, and what successful jobs have left."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from sqlalchemy import String, bindparam, cast, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.store import audit, references
from api.store.artifacts import StoredFile
from api.store.errors import Conflict
from api.store.life import TERMINAL
from api.store.lookup import by_id, newest, storable
from api.store.records import Artifact
from api.store.session import now
from api.store.tables import Alias, ApiKey, Job, Model

_FOLDER = "model/"  # where a job's artifacts have its model


def register(
    session: Session,
    *,
    path: str,
    digest: str,
    files: Mapping[str, Mapping[str, Any]],
    architecture: str,
    key_id: str,
    parameters: int | None = None,
    name: str | None = None,
) -> tuple[Model, bool]:
    """Register a folder, or find it registered already with the same content; True if it is new, or was deleted.

    `files` maps names to `{"sha256": hex, "size": bytes}`; `digest` stands for all of them. The name defaults to the
    folder's. Raises SpecError for text that cannot be stored.
    """
    storable(path, "path")
    storable(name, "name")
    same = select(Model).where(Model.path == path, Model.digest == digest)
    known = session.scalars(same).one_or_none()
    if known is None:
        model = Model(
            name=name or PurePath(path).name,
            path=path,
            digest=digest,
            files={file: dict(facts) for file, facts in files.items()},
            architecture=architecture,
            parameters=parameters,
            key_id=key_id,
            created_at=now(session),
        )
        try:
            with session.begin_nested():
                session.add(model)
        except IntegrityError:
            # Somebody registered the same folder at the same time, and has committed by now.
            known = session.scalars(same).one_or_none()
            if known is None:
                raise
    if known is not None:
        known.parameters = known.parameters or parameters
        if known.deleted_at is None:
            return known, False
        model, known.deleted_at = known, None
    actor = session.get_one(ApiKey, key_id).principal_id
    facts = {"digest": digest}
    audit.append(session, actor=actor, key_id=key_id, action="model.registered", subject=model.id, facts=facts)
    return model, True


def made_by(session: Session, job: Job, digest: str, files: Iterable[StoredFile]) -> Model | None:
    """Enter what a job delivers, of which `files` are the job's artifacts, as a model that jobs may start from.

    None where it is none: adapters alone, or the outcome of a job whose own model was not registered.
    """
    delivered = {file.name.removeprefix(_FOLDER): {"sha256": file.digest, "size": file.size} for file in files}
    if "config.json" not in delivered or job.model_id is None:
        return None
    parent = session.get_one(Model, job.model_id)
    model = Model(
        name=parent.name,
        path=f"job:{job.id}",
        digest=digest,
        files=delivered,
        architecture=parent.architecture,
        parameters=parent.parameters,
        key_id=job.key_id,
        job_id=job.id,
        parent_id=parent.id,
        root_id=parent.root_id or parent.id,
        created_at=now(session),
    )
    session.add(model)
    session.flush()
    return model


def of_job(session: Session, job_id: str) -> Model | None:
    """The model that the job has left, deleted or not."""
    return session.scalars(select(Model).where(Model.job_id == job_id)).one_or_none()


def get(session: Session, model_id: str) -> Model:
    """Raises NotFound."""
    return by_id(session, Model, model_id)


def page(session: Session, *, after: str | None = None, limit: int = 50) -> tuple[Sequence[Model], bool]:
    """Models that are not deleted, the newest first, and whether there are more."""
    return newest(session, select(Model).where(Model.deleted_at.is_(None)), Model.id, after, limit)


def usable(session: Session, model_id: str) -> Model | None:
    """The model, unless it is deleted or unknown; it stays so until the transaction ends."""
    return hold(session, [model_id]).get(model_id)


def hold(session: Session, model_ids: Iterable[str]) -> dict[str, Model]:
    """Those of the models that are neither deleted nor unknown, by id; they stay so until the transaction ends."""
    return {model.id: model for model in session.scalars(_HELD, {"ids": list(set(model_ids))}) if not model.deleted_at}


_HELD = (
    select(Model)
    .where(Model.id.in_(bindparam("ids", expanding=True)))
    .order_by(Model.id)
    # The lock that a row referring to it takes anyway: of all others only a deletion waits for it.
    .with_for_update(read=True, key_share=True)
    .execution_options(populate_existing=True)
)


def delete(session: Session, model_id: str, *, actor: str, key_id: str | None = None) -> tuple[Model, list[str]]:
    """Forget a registered folder, whose files stay, or give up the files that a job left. The row stays for those that
    descend from it. Deleting twice changes nothing.

    Returns the blobs to give to `artifacts.delete_plain` after commit. Raises NotFound, and Conflict while an alias
    stands for it, a job that has not ended names it, or the job that left it is under legal hold.
    """
    model = by_id(session, Model, model_id, lock=True)
    if model.deleted_at is None:
        if stands := session.scalars(select(Alias.name).where(Alias.model_id == model.id).order_by(Alias.name)).all():
            raise Conflict(f"Model {model.id} is what {', '.join(stands)} stands for. Move the alias first.")
        if waiting := _named_by(session, model.id):
            raise Conflict(f"Model {model.id} is named by job {waiting}, which has not ended.")
        if model.job_id and by_id(session, Job, model.job_id, lock=True).held_at is not None:
            raise Conflict(f"Model {model.id} was left by job {model.job_id}, which is under legal hold.")
        model.deleted_at = now(session)
        for file in session.scalars(select(Artifact).where(Artifact.job_id == model.job_id, Artifact.kind == "model")):
            session.delete(file)
        session.flush()
        audit.append(session, actor=actor, key_id=key_id, action="model.deleted", subject=model.id)
    # Also where it was deleted before: whoever did so may have died before the blobs were gone.
    return model, [facts["sha256"] for facts in model.files.values()] if model.job_id else []


def _named_by(session: Session, model_id: str) -> str | None:
    """A job that has not ended and names the model, in whichever field."""
    holding = select(Job.id, Job.model_id, Job.spec).where(
        Job.status.not_in(TERMINAL), cast(Job.spec, String).contains(model_id) | (Job.model_id == model_id)
    )
    for job_id, target, spec in session.execute(holding):
        if target == model_id or any(named.get("id") == model_id for named in references.models(spec).values()):
            return str(job_id)
    return None
