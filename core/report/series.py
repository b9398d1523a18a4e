"""What a series of requests leaves (MUSE's scalability and sustainability, arXiv:2407.06460): series.json."""

from typing import Final, Literal

from core.report.schema import Measurement, Part, Sha256, Verdict
from core.spec.series import Kind

VERSION: Final = "1"


class Earlier(Part):
    """What an earlier request removed, measured on the model that a later one delivered; `verdict` is that of the gates
    on the forget set alone."""

    request: int
    metrics: dict[str, Measurement]
    verdict: Verdict


class RequestDone(Part):
    """One request, counted from 1: what its report in `folder` says, and what is left of the forgetting before it.

    `rows` are those to forget; `seconds` those of training.
    """

    request: int
    folder: str
    rows: int
    spec_digest: Sha256
    input_model: Sha256
    output_model: Sha256
    steps: int
    seconds: float
    verdict: Verdict
    before: dict[str, Measurement]
    after: dict[str, Measurement]
    earlier: list[Earlier]


class Series(Part):
    """The series so far; `finished` once every request is in it."""

    version: Literal["1"] = VERSION
    series: Kind
    spec_digest: Sha256
    finished: bool
    requests: list[RequestDone]
