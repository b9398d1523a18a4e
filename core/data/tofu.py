"""The TOFU benchmark (arXiv:2401.06121): questions and answers, some splits with paraphrases and perturbations."""

from core.data.inputs import Inputs
from core.data.published import read_published
from core.spec.records import Record, record_from
from core.spec.sources import Tofu


def read_tofu(source: Tofu, inputs: Inputs) -> list[Record]:  # noqa: ARG001 -- one signature for every source
    """Records of one split."""
    return read_published(source, ("question", "answer"), lambda row: [record_from(row)])
