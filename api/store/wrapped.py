"""Whether a vault is the one under which this database's keys were wrapped."""

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from api.store.errors import InvalidSetting
from api.store.tables import Dataset, Job
from api.store.vault import BARE, Vault

_LOOKED_AT = 20


def opens_any(session: Session, vault: Vault) -> bool:
    """Whether it opens one of the newest keys of data sets and of jobs."""
    for table in (Dataset, Job):
        wrapped = select(table.id, table.key).where(text("key IS NOT NULL"), func.length(table.key) > BARE)
        for row_id, key in session.execute(wrapped.order_by(table.id.desc()).limit(_LOOKED_AT)):
            if _opens(vault, key, row_id):
                return True
    return False


def _opens(vault: Vault, key: bytes | None, row_id: str) -> bool:
    try:
        return bool(key and vault.unwrap(key, row_id))
    except InvalidSetting:
        return False
