"""Uploaded data sets: what is known about them, and where their sealed rows are. The rows themselves are never here."""

from collections.abc import Iterable, Sequence

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from api.store import audit
from api.store.ids import new_id
from api.store.lookup import absent, by_id, newest, storable
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
    leaves: str | None = None,
    fingerprint: str | None = None,
    warnings: Sequence[str],
    key_id: str,
    name: str | None = None,
) -> Dataset:
    """Register an upload whose plaintext of `size` bytes is already stored as `blob`, sealed under `key`, which is
    wrapped here.

    `commitment` is the root of the keyed Merkle tree over the records, whose leaves are the blob `leaves`, sealed under
    the same key; `fingerprint` finds the same records again. Raises SpecError for text that cannot be stored.
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
        leaves=leaves,
        fingerprint=fingerprint,
        warnings=list(warnings),
        key_id=key_id,
        principal_id=session.get_one(ApiKey, key_id).principal_id,
        created_at=now(session),
    )
    session.add(dataset)
    session.flush()
    audit.append(
        session,
        actor=dataset.principal_id,
        key_id=key_id,
        action="dataset.uploaded",
        subject=dataset.id,
        facts={"rows": rows},
    )
    return dataset


def get(session: Session, dataset_id: str, *, only: str | None = None) -> Dataset:
    """Raises NotFound, with `only` also for a set that is another principal's."""
    found = by_id(session, Dataset, dataset_id)
    if only not in (None, found.principal_id):
        raise absent(Dataset, dataset_id)
    return found


def keep(session: Session, dataset_ids: Iterable[str]) -> dict[str, Dataset]:
    """Those of the sets that there are, by id. None is destroyed until this transaction ends: a job may name it."""
    return {found.id: found for found in session.scalars(_KEPT, {"ids": list(set(dataset_ids))})}


_KEPT = (
    select(Dataset)
    .where(Dataset.id.in_(bindparam("ids", expanding=True)))
    .order_by(Dataset.id)
    .with_for_update(read=True)
    .execution_options(populate_existing=True)
)


def page(
    session: Session, *, only: str | None = None, after: str | None = None, limit: int = 50
) -> tuple[Sequence[Dataset], bool]:
    """Data sets, the newest first, and whether there are more; with `only`, those of this principal."""
    query = select(Dataset) if only is None else select(Dataset).where(Dataset.principal_id == only)
    return newest(session, query, Dataset.id, after, limit)
