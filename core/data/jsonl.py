"""JSON-lines files: an upload of the service, or a file of the researcher's own."""

from pathlib import Path

from core.data.inputs import Inputs
from core.errors import DataError
from core.spec.records import Record, read_lines
from core.spec.sources import JsonLines, Upload


def read_file(path: Path, name: str, rows: int | None, field: str = "path") -> list[Record]:
    """All records of a file, or the first `rows`. Raises DataError naming the file (as `name`) and the line.

    `field` is the source's that named the file, told where there is none or it is empty.
    """
    try:
        with path.open("rb") as lines:
            records = list(read_lines(lines, name, rows))
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}", param=field) from None
    if not records:
        raise DataError(f"{name} holds no records", param=field)
    return records


def read_upload(source: Upload, inputs: Inputs) -> list[Record]:
    """Records of an uploaded data set."""
    return read_file(inputs.dataset(source.dataset), source.dataset, source.rows, "dataset")


def read_jsonl(source: JsonLines, inputs: Inputs) -> list[Record]:  # noqa: ARG001 -- one signature for every source
    """Records of a local file."""
    return read_file(Path(source.path), source.path, source.rows)
