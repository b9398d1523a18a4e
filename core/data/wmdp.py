"""WMDP (arXiv:2403.03218): corpora of text to forget and to keep, and multiple-choice questions."""

from core.data.inputs import Inputs
from core.data.published import read_published
from core.data.text import text_records
from core.spec.records import Record, choice_record
from core.spec.sources import Wmdp


def read_wmdp(source: Wmdp, inputs: Inputs) -> list[Record]:  # noqa: ARG001 -- one signature for every source
    """Records of one config. A question's choices stand in its prompt; the answer is letter and text."""
    if source.multiple_choice:
        return read_published(source, ("question", "choices", "answer"), lambda row: [choice_record(row)])
    return read_published(source, ("text",), lambda row: text_records(row, "text"))
