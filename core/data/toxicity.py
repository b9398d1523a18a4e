"""RealToxicityPrompts (arXiv:2009.11462): beginnings of sentences, each with how it went on where it was found."""

from typing import Any

from core.data.inputs import Inputs
from core.data.published import read_published
from core.errors import DataError
from core.spec.records import Record, record_from
from core.spec.sources import ToxicPrompts


def read_toxic_prompts(source: ToxicPrompts, inputs: Inputs) -> list[Record]:  # noqa: ARG001 -- one signature
    """Records of prompts as they stand; the continuation is the answer."""
    return read_published(source, ("prompt", "continuation"), lambda row: [_record(row)])


def _record(row: dict[str, Any]) -> Record:
    texts = {}
    for name in ("prompt", "continuation"):
        if not isinstance(row[name], dict):
            raise DataError(f"field '{name}' must be an object with a text", param=name)
        texts[name] = row[name].get("text")
    return record_from({"prompt": texts["prompt"], "response": texts["continuation"]})
