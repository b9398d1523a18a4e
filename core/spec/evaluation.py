"""How scoring is done, and the gates: thresholds fixed before the run, hashed with the spec, that give the verdict."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from core.spec.base import Spec, nearest, quotable
from core.spec.metrics import METRICS


class Gate(Spec):
    """`metric` (or its ratio to the value before) must be `at_most` or `at_least` a threshold.

    With `interval`, the whole 95% interval must be on the right side, not only the value.
    """

    metric: str = Field(json_schema_extra={"enum": list(METRICS)})
    at_most: float | None = None
    at_least: float | None = None
    relative_to: Literal["before"] | None = Field(
        None, description="compare after / before; the value before counts as exact"
    )
    interval: bool = False

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        if value not in METRICS:
            raise PydanticCustomError(
                "unknown_metric",
                "Unknown metric '{metric}'.{nearest}",
                {"metric": quotable(value), "nearest": nearest(value, METRICS)},
            )
        return value

    @model_validator(mode="after")
    def _one_side(self) -> "Gate":
        if (self.at_most is None) == (self.at_least is None):
            raise PydanticCustomError("gate_sides", "A gate needs exactly one of at_most and at_least.", {})
        return self

    def describe(self) -> str:
        """The gate in words, for reports: `forget.rouge_l <= 0.3`."""
        sign, bound = ("<=", self.at_most) if self.at_most is not None else (">=", self.at_least)
        return f"{self.metric}{' / before' if self.relative_to else ''} {sign} {bound:g}"


class Evaluation(Spec):
    """How scoring is done. Batch sizes change speed and memory, never a number beyond float rounding."""

    batch_tokens: int = Field(8192, ge=64, le=10_000_000, description="padded tokens in one forward pass")
    max_new_tokens: int = Field(128, ge=1, le=4096, description="upper bound on a greedy answer's length")
    watch_every: int | None = Field(
        None, ge=1, description="optimizer steps between looks along the way; absent: ten looks"
    )
    watch_rows: int = Field(16, ge=0, le=10_000, description="rows of each set looked at along the way; 0: none")
    bootstrap: int = Field(1000, ge=100, le=100_000, description="resamples for the 95% interval")


Gates = list[Gate]


def gate_dict(gate: Gate) -> dict[str, Any]:
    """The gate as it stands in a report."""
    return gate.model_dump(exclude_none=True)
