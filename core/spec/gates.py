"""Gates: thresholds fixed before the run and hashed with the spec, that give the verdict."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from core.spec.base import Spec, nearest, quotable
from core.spec.metrics import LM_EVAL_NAME, METRICS, info

# A value on forget that is at most so many times that on holdout can be said to be near it.
_NEAR = 3.0
_WITHOUT_INTERVAL = ("tofu.forget_quality",)


class Gate(Spec):
    """`metric`, or its ratio to another value, must be `at_most` a threshold, `at_least` one, or between the two.

    With `interval`, the whole 95% interval must be on the right side, not only the value.
    """

    metric: str = Field(
        description="a metric by name, or lm_eval.TASK.METRIC", json_schema_extra={"enum": [*METRICS, LM_EVAL_NAME]}
    )
    at_most: float | None = Field(None, strict=True)
    at_least: float | None = Field(None, strict=True)
    relative_to: Literal["before", "holdout"] | None = Field(
        None, description="compare after / before, or forget / holdout; the value divided by counts as exact"
    )
    interval: bool = False

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        if value not in METRICS and not re.fullmatch(LM_EVAL_NAME, value):
            raise PydanticCustomError(
                "unknown_metric",
                "Unknown metric '{metric}'.{nearest}",
                {"metric": quotable(value), "nearest": nearest(value, [*METRICS, "lm_eval.TASK.METRIC"])},
            )
        return value

    @model_validator(mode="after")
    def _a_side(self) -> "Gate":
        if self.at_most is None and self.at_least is None:
            raise PydanticCustomError("gate_sides", "A gate needs at_most, at_least or both.", {})
        if self.at_most is not None and self.at_least is not None and self.at_least > self.at_most:
            raise PydanticCustomError("gate_sides", "A gate's at_least may not be above its at_most.", {})
        return self

    @model_validator(mode="after")
    def _can_be_held(self) -> "Gate":
        if self.interval and self.metric in _WITHOUT_INTERVAL:
            said = "'{metric}' has no interval. Allowed interval: false."
            raise PydanticCustomError("gate_never", said, {"metric": self.metric})
        return self

    @model_validator(mode="after")
    def _something_to_divide_by(self) -> "Gate":
        if self.relative_to == "before" and not info(self.metric).before:
            said = "'{metric}' is not measured before a run. Allowed relative_to: null."
            raise PydanticCustomError("gate_relative", said, {"metric": self.metric})
        if self.relative_to == "holdout" and self.on_holdout is None:
            beside = ", ".join(name for name in METRICS if _twin(name) in METRICS)
            said = "'{metric}' is not measured on holdout too. Allowed with relative_to 'holdout': {beside}."
            raise PydanticCustomError("gate_relative", said, {"metric": self.metric, "beside": beside})
        return self

    @property
    def on_holdout(self) -> str | None:
        """The same metric of the holdout set, where there is one."""
        twin = _twin(self.metric)
        return twin if twin in METRICS else None

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets of `data` that it is measured on."""
        return (*info(self.metric).sets, *(("holdout",) if self.relative_to == "holdout" else ()))

    @property
    def speaks_of_forgetting(self) -> bool:
        """Whether it can only hold for a model that forgot something.

        Its metric must be about what is to be forgotten, bounded from the side on which remembering lies, and the bound
        ask for more than the metric's range, or for a ratio the untouched model, grants anyway. `forget.probability >=
        0.1` asks for an answer that is still fluent: a fair wish, but not one about forgetting.
        """
        metric = info(self.metric)
        if metric.about != "forgetting":
            return False
        if metric.better == "lower":
            if self.relative_to == "holdout":
                # A model that remembers lies far above text that it has never seen; how far, nobody can say.
                return self.at_most is not None and self.at_most <= _NEAR
            granted = 1.0 if self.relative_to else metric.highest
            return self.at_most is not None and (granted is None or self.at_most < granted)
        if self.relative_to == "holdout":
            return self.at_least is not None and self.at_least >= 1 / _NEAR
        granted = 1.0 if self.relative_to else metric.lowest
        return self.at_least is not None and self.at_least > granted

    def describe(self) -> str:
        """The gate in words, for reports: `forget.rouge_l <= 0.3`."""
        of = f"{self.metric}{f' / {self.relative_to}' if self.relative_to else ''}"
        if self.at_most is not None and self.at_least is not None:
            return f"{self.at_least:g} <= {of} <= {self.at_most:g}"
        return f"{of} <= {self.at_most:g}" if self.at_most is not None else f"{of} >= {self.at_least:g}"


def _twin(metric: str) -> str:
    split, _, name = metric.partition(".")
    return f"holdout.{name}" if split == "forget" else ""


Gates = list[Gate]


def gate_dict(gate: Gate) -> dict[str, Any]:
    """The gate as it stands in a report."""
    return gate.model_dump(exclude_none=True)
