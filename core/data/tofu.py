"""The TOFU benchmark (arXiv:2401.06121) from a local folder of the published files, one JSON object a line."""

from pathlib import Path

from core.data.inputs import Inputs
from core.data.jsonl import read_file
from core.errors import DataError
from core.spec.base import nearest
from core.spec.records import Record
from core.spec.sources import Tofu


def read_tofu(source: Tofu, inputs: Inputs) -> list[Record]:  # noqa: ARG001 -- one signature for every source
    """Records of one split. Raises DataError for a folder or split that is not there, naming those that are."""
    folder = Path(source.path)
    splits = {file.stem: file for ending in ("json", "jsonl") for file in folder.glob(f"*.{ending}")}
    if not splits:
        raise DataError(f"{folder} holds no TOFU files (forget01.json, retain99.json, ...)")
    if source.split not in splits:
        raise DataError(f"{folder} has no split '{source.split}'.{nearest(source.split, splits)}")
    return read_file(splits[source.split], f"TOFU {source.split}", source.rows)
