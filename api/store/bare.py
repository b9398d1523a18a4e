"""Keys as the first version of Lethe stored them, bare: wrapped when an API process of this version starts."""

from sqlalchemy import func, select, text, update

from api.store.session import Database
from api.store.tables import Dataset, Job
from api.store.vault import BARE, Vault

_AT_ONCE = 500


def wrap_all(database: Database, vault: Vault) -> int:
    """Wrap every bare key; returns how many. Several processes at once, and one that is broken off, do no harm."""
    return sum(_wrap(database, vault, table) for table in (Dataset, Job))


def _wrap(database: Database, vault: Vault, table: type[Dataset] | type[Job]) -> int:
    # The words of the index, so that a table of a million jobs is not read through.
    bare = select(table.id, table.key).where(text("key IS NOT NULL"), func.length(table.key) == BARE).limit(_AT_ONCE)
    wrapped = 0
    while True:
        with database.reading() as session:
            rows = session.execute(bare).all()
        if not rows:
            return wrapped
        with database.transaction() as session:
            for row_id, key in rows:
                assert key is not None
                # Only where it is as it was read: another process may have wrapped or destroyed it meanwhile.
                session.execute(
                    update(table).where(table.id == row_id, table.key == key).values(key=vault.wrap(key, row_id))
                )
        wrapped += len(rows)
