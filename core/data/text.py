"""Plain text and passages: C4, WikiText, BookCorpus and whatever else has the same columns.

A text longer than a sequence is divided when it is encoded, not here.
"""

from typing import Any

from core.data.inputs import Inputs
from core.data.published import read_published
from core.spec.records import Record, record_from
from core.spec.sources import Copyright, Text


def read_text(source: Text, inputs: Inputs) -> list[Record]:  # noqa: ARG001 -- one signature for every source
    """Records of the rows that hold text; WikiText's empty lines are passed over."""
    return read_published(source, (source.column,), lambda row: text_records(row, source.column))


def read_copyright(source: Copyright, inputs: Inputs) -> list[Record]:  # noqa: ARG001 -- one signature for every source
    """Records of prompts and responses, as they stand or as questions."""

    def records(row: dict[str, Any]) -> list[Record]:
        passage = record_from({"prompt": row["prompt"], "response": row["response"]})
        return [passage if source.raw else Record(passage.prompt, passage.answer)]

    return read_published(source, ("prompt", "response"), records)


def text_records(row: dict[str, Any], column: str) -> list[Record]:
    """The row's text as a record, or nothing where it is blank: there is no token in it to count."""
    text = row[column]
    return [] if isinstance(text, str) and not text.strip() else [record_from({"text": text})]
