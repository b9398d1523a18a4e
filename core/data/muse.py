"""The MUSE benchmark (arXiv:2407.06460), News or Books: corpora of text, questions, and passages to go on with."""

from core.data.inputs import Inputs
from core.data.published import read_published
from core.data.text import text_records
from core.spec.records import Record, record_from
from core.spec.sources import Muse


def read_muse(source: Muse, inputs: Inputs) -> list[Record]:  # noqa: ARG001 -- one signature for every source
    """Records of one split of one config. `verbmem` is a beginning and how it goes on, both as they stand."""
    if source.config == "knowmem":
        return read_published(source, ("question", "answer"), lambda row: [record_from(row)])
    if source.config == "verbmem":
        return read_published(
            source, ("prompt", "gt"), lambda row: [record_from({"prompt": row["prompt"], "response": row["gt"]})]
        )
    return read_published(source, ("text",), lambda row: text_records(row, "text"))
