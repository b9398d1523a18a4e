"""The one way to read a published set, wherever it lies: file names, files one by one, rows until there are enough.

A source adds nothing but the columns it needs and what a row becomes.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from core.data.repository import Folder, Repository
from core.data.rows import rows_of
from core.errors import DataError
from core.spec.layouts import shards
from core.spec.records import Record
from core.spec.sources import Published

Row = dict[str, Any]


def read_published(
    source: Published, columns: Sequence[str], records_of: Callable[[Row], Iterable[Record]]
) -> list[Record]:
    """The records of a source, at most its `rows`; no file is opened, or fetched, that is not needed for those.

    Raises DataError naming what is missing or wrong; its `param` is the source's field at fault, where one is.
    """
    records = list(islice(_records(source, columns, records_of), source.rows))
    if not records:
        raise DataError(f"{_where(source)} holds no records")
    return records


def _records(
    source: Published, columns: Sequence[str], records_of: Callable[[Row], Iterable[Record]]
) -> Iterator[Record]:
    for file, name in _files(source):
        for place, row in rows_of(file, name, columns):
            try:
                yield from records_of(row)
            except DataError as error:
                raise DataError(f"{place}: {error.message}", param=error.param) from None


def _files(source: Published) -> Iterator[tuple[Path, str]]:
    """Files with the names that messages give them."""
    where = _where(source)
    if source.or_file and source.path is not None and os.path.isfile(source.path):  # noqa: PTH113 -- see core.checks
        yield Path(source.path), where
        return
    repository = _repository(source)
    places = source.places()
    names = repository.names(folder for alternative in places for folder, _ in alternative)
    try:
        found = shards(names, places)
    except DataError as error:
        raise DataError(f"{where}: {error.message}", param=error.param) from None
    for shard in found:
        if not shard.present:
            raise DataError(f"{where}: {shard.name} is missing; only `rows` of the files before it could be read")
        yield repository.file(shard.name), f"{where}, {shard.name}"


def _repository(source: Published) -> Repository:
    if source.hub is None or source.revision is None:
        return Folder(Path(str(source.path)))
    # The hub's library takes a while to import, and most runs read local files.
    from core.data.hub import HubCommit

    return HubCommit(source.hub, source.revision)


def _where(source: Published) -> str:
    return str(source.path) if source.hub is None else f"{source.hub} at {source.revision}"
