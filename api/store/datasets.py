"""Uploaded data sets: what is known about them, and where their sealed rows are. The rows themselves are never here."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.store import audit
from api.store.ids import new_id
from api.store.lookup import by_id, newest, storable
from api.store.session import now
from api.store.tables import ApiKey, Dataset
from api.store.vault import Vault


def register(
    session: Session,
    vault: Vault,
    *,
    rows: int,
    size: int,
    blob: str,
    key: bytes,
    commitment: str,
    warnings: Sequence[str],
    key_id: str,
    name: str | None = None,
) -> Dataset:
    """Register an upload whose plaintext of `size` bytes is already stored as `blob`, sealed under `key`, which is
    wrapped here.

    `commitment` is `sealed.commitment` of the plaintext under the same key. Raises SpecError for text that cannot be
    stored.
    """
    storable(name, "name")
    dataset_id = new_id("ds")
    dataset = Dataset(
        id=dataset_id,
        name=name,
        rows=rows,
        size=size,
        blob=blob,
        key=vault.wrap(key, dataset_id),
        commitment=commitment,
        warnings=list(warnings),
        key_id=key_id,
        principal_id=session.get_one(ApiKey, key_id).principal_id,
        created_at=now(session),
    )
    session.add(dataset)
    session.flush()
    audit.append(session, actor=key_id, action="dataset.uploaded", subject=dataset.id, facts={"rows": rows})
    return dataset


def get(session: Session, dataset_id: str) -> Dataset:
    """Raises NotFound."""
    return by_id(session, Dataset, dataset_id)


def page(session: Session, *, after: str | None = None, limit: int = 50) -> tuple[Sequence[Dataset], bool]:
    """Data sets, the newest first, and whether there are more."""
    return newest(session, select(Dataset), Dataset.id, after, limit)
