"""Registered models: folders that jobs may start from, pinned by digest."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.store import audit
from api.store.lookup import by_id, newest, storable
from api.store.session import now
from api.store.tables import Model


def register(
    session: Session,
    *,
    path: str,
    digest: str,
    files: Mapping[str, Mapping[str, Any]],
    architecture: str,
    key_id: str,
    name: str | None = None,
) -> tuple[Model, bool]:
    """Register a folder, or find it registered already with the same content; True if it is new.

    `files` maps names to `{"sha256": hex, "size": bytes}`; `digest` stands for all of them. The name defaults to the
    folder's. Raises SpecError for text that cannot be stored.
    """
    storable(path, "path")
    storable(name, "name")
    same = select(Model).where(Model.path == path, Model.digest == digest)
    known = session.scalars(same).one_or_none()
    if known is not None:
        return known, False
    model = Model(
        name=name or PurePath(path).name,
        path=path,
        digest=digest,
        files={file: dict(facts) for file, facts in files.items()},
        architecture=architecture,
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
        return known, False
    audit.append(session, actor=key_id, action="model.registered", subject=model.id, facts={"digest": digest})
    return model, True


def get(session: Session, model_id: str) -> Model:
    """Raises NotFound."""
    return by_id(session, Model, model_id)


def page(session: Session, *, after: str | None = None, limit: int = 50) -> tuple[Sequence[Model], bool]:
    """Models, the newest first, and whether there are more."""
    return newest(session, select(Model), Model.id, after, limit)
