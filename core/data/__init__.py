"""Where records come from: SOURCES maps a source's name in the spec to the function that reads it."""

from collections.abc import Callable
from typing import Any

from core.data.inputs import Inputs
from core.data.jsonl import read_jsonl, read_upload
from core.data.tofu import read_tofu
from core.spec.records import Record

SOURCES: dict[str, Callable[[Any, Inputs], list[Record]]] = {
    "upload": read_upload,
    "jsonl": read_jsonl,
    "tofu": read_tofu,
}

__all__ = ["SOURCES", "Inputs"]
