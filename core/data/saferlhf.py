"""PKU-SafeRLHF (arXiv:2406.15513): two responses to a prompt, each labelled as safe or not."""

from core.data.inputs import Inputs
from core.data.published import read_published
from core.spec.records import Record, safety_records
from core.spec.sources import SafeRlhf

_COLUMNS = (
    "prompt",
    "response_0",
    "response_1",
    "is_response_0_safe",
    "is_response_1_safe",
    "better_response_id",
    "safer_response_id",
)


def read_saferlhf(source: SafeRlhf, inputs: Inputs) -> list[Record]:  # noqa: ARG001 -- one signature for every source
    """The chosen responses, each a record of its own: a prompt may give two, one or none."""
    return read_published(source, _COLUMNS, lambda row: safety_records(row, source.response))
