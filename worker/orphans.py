"""Files of the artifact store that no row refers to: what a worker or an upload left that died before it could commit.

The store is looked through one drawer at a time, a 256th of it, so that a look stays cheap however much is kept.
"""

import structlog

from api.store import artifacts
from api.store.blobs import Blobs
from api.store.session import Database

log = structlog.get_logger()


def remove_orphans(database: Database, blobs: Blobs, drawer: int, older_than: float) -> list[str]:
    """Remove what lies in this drawer, was written longer than so many seconds ago, and is referred to by no row.

    `older_than` must be far more than any upload takes, since a file is there before its row is. Returns its digests.
    """
    there = blobs.in_drawer(drawer)
    with database.reading() as session:
        unused = artifacts.unreferenced(session, there)
    # The age is asked last: a file that is stored again in this moment is new.
    orphans = [digest for digest in unused if (blobs.age(digest) or 0.0) > older_than]
    blobs.delete(orphans)
    for digest in orphans:
        log.info("orphan removed", blob=digest)
    return orphans
