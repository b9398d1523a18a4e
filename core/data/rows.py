"""Rows of a data file, one after the other: JSON lines, a JSON list, Parquet or CSV, packed with gzip or not.

Nothing is read before it is asked for, so the first rows of a large corpus cost what they weigh.
"""

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from core.errors import DataError
from core.spec.records import row_from_line

_BATCH = 256
_CSV_BLOCK = 16 << 20
_SHOWN = 20  # column names in a message
# What may be told of a file's names: one in any other form may be a record's own words.
_NAME = re.compile(r"[A-Za-z_][\w.-]{0,63}")


def rows_of(file: Path, name: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place, for messages: `name, line 3`. A row has the named columns, and perhaps others.

    Raises DataError naming the file (as `name`), the place and the reason; `columns` are those that must be there.
    """
    ending = [part for part in file.suffixes if part != ".gz"][-1:]
    read = {".parquet": _parquet, ".csv": _csv}.get("".join(ending), _json)
    try:
        for place, row in read(file, name, columns):
            if not isinstance(row, dict):
                raise DataError(f"{place}: expected a JSON object, got {type(row).__name__}")
            check_columns(columns, row, place, named=read is not _csv)
            yield place, row
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        raise DataError(f"{name} cannot be read: {reason}") from None


def check_columns(columns: Sequence[str], there: Iterable[str], place: str, *, named: bool = True) -> None:
    """Raises DataError naming the first column that is not there, and those that are, if they look like names.

    `named`: the file itself says which are names. Of a CSV file without a header line they are a record's words.
    """
    found = list(there)
    for column in columns:
        if column not in found:
            told = _told(found) if named else f"There are {len(found)}; is there a header line?"
            raise DataError(f"{place}: there is no column '{column}'. {told}", param="column")


def _told(names: Sequence[str]) -> str:
    plain = [name for name in names if _NAME.fullmatch(name)][:_SHOWN]
    others = f"{len(names) - len(plain)} not shown"
    return f"There are: {', '.join(plain + [others] * (len(plain) < len(names)))}"


def _json(file: Path, name: str, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:  # noqa: ARG001 -- one signature
    with _opened(file) as stream:
        if _first(stream) == b"[":
            stream.seek(0)
            # A list cannot be read row by row, and is not how anything large is published.
            yield from _listed(stream.read(), name)
            return
        stream.seek(0)
        for number, line in enumerate(stream, start=1):
            if line.strip():
                place = f"{name}, line {number}"
                try:
                    row = row_from_line(line)
                except DataError as error:
                    raise DataError(f"{place}: {error.message}") from None
                yield place, row


def _listed(text: bytes, name: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = row_from_line(text)
    except DataError as error:
        raise DataError(f"{name}: {error.message}") from None
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", row


def _first(stream: IO[bytes]) -> bytes:
    while (character := stream.read(1)).isspace():
        pass
    return character


def _opened(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _parquet(file: Path, name: str, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:  # noqa: ARG001
    # Arrow takes a while to import, and most runs read no Parquet.
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            yield from _batches(table.iter_batches(_BATCH), name)
    except pyarrow.ArrowException:
        raise DataError(f"{name} is no Parquet file that can be read") from None


def _csv(file: Path, name: str, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import csv

    try:
        with csv.open_csv(
            file,
            read_options=csv.ReadOptions(block_size=_CSV_BLOCK),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            # Left to guess, Arrow would make a number of an answer that is written in digits.
            convert_options=csv.ConvertOptions(column_types={c: pyarrow.string() for c in columns}),
        ) as table:
            yield from _batches(table, name)
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0].partition(":")[0]
        raise DataError(f"{name} is no CSV file that can be read ({reason})") from None


def _batches(batches: Any, name: str) -> Iterator[tuple[str, Any]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield f"{name}, row {number}", row
