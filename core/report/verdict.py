"""The gates applied to what was measured, and the verdict they give: a failed gate beats an unmeasured one."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from core.report.schema import Absent, GateResult, Measured, Measurement, Verdict
from core.spec.evaluation import Gate, gate_dict
from core.spec.metrics import METRICS

NONE_ABOUT_FORGETTING = "No gate speaks of forgetting, so nothing here says whether the forget set was forgotten."


def judge(gates: Sequence[Gate], before: Mapping[str, Measurement], after: Mapping[str, Measurement]) -> Verdict:
    """The verdict of `gates` on the metrics measured before and after.

    `passed` if all hold and one speaks of forgetting, `not_passed` if one fails, `inconclusive` otherwise.
    """
    results = [apply(gate, before, after) for gate in gates]
    failed = [result.reason for result in results if result.outcome == "failed"]
    if failed:
        return Verdict(verdict="not_passed", reasons=failed, gates=results)
    open_questions = [result.reason for result in results if result.outcome == "unmeasured"]
    if not any(speaks_of_forgetting(gate) for gate in gates):
        open_questions.append(NONE_ABOUT_FORGETTING)
    if open_questions:
        return Verdict(verdict="inconclusive", reasons=open_questions, gates=results)
    return Verdict(verdict="passed", reasons=[result.reason for result in results], gates=results)


def speaks_of_forgetting(gate: Gate) -> bool:
    """Whether the gate can only hold for a model that forgot something.

    It must be on the forget set, bound the metric from the side on which remembering lies, and ask for more than the
    metric's range, or for a ratio the untouched model, grants anyway. `forget.probability >= 0.1` asks for an answer
    that is still fluent: a fair wish, but not one about forgetting.
    """
    metric = METRICS[gate.metric]
    if metric.set != "forget":
        return False
    if metric.better == "lower":
        granted = 1.0 if gate.relative_to else metric.highest
        return gate.at_most is not None and (granted is None or gate.at_most < granted)
    granted = 1.0 if gate.relative_to else metric.lowest
    return gate.at_least is not None and gate.at_least > granted


def apply(gate: Gate, before: Mapping[str, Measurement], after: Mapping[str, Measurement]) -> GateResult:
    """One gate's result; `unmeasured` where a value is absent or the interval lies on both sides of the bound."""
    name = gate.describe()
    measured = _measured(gate, before.get(gate.metric), after.get(gate.metric))
    if isinstance(measured, Absent):
        reason = f"{name} could not be measured: {measured.absent}."
        return GateResult(gate=gate_dict(gate), outcome="unmeasured", observed=measured, reason=reason)
    value, low, high = measured
    seen = f"{value:.6g} [{low:.6g}, {high:.6g}]" if gate.interval else f"{value:.6g}"
    # A bootstrap interval may miss its own value; the gate asks for both.
    beyond = [_beyond(gate, point) for point in ((value, low, high) if gate.interval else (value,))]
    outcome: Literal["held", "failed", "unmeasured"]
    if max(beyond) <= 0:
        outcome, reason = "held", f"{name} holds: {seen}."
    elif min(beyond) > 0:
        outcome, reason = "failed", f"{name} fails by {beyond[0]:.6g}: {seen}."
    else:
        outcome, reason = "unmeasured", f"{name} is not settled: {seen} lies on both sides of the bound."
    return GateResult(gate=gate_dict(gate), outcome=outcome, observed=value, reason=reason)


def _beyond(gate: Gate, point: float) -> float:
    """How far `point` lies on the wrong side of the gate's bound; negative on the right side."""
    if gate.at_most is not None:
        return point - gate.at_most
    assert gate.at_least is not None
    return gate.at_least - point


def _measured(gate: Gate, before: Measurement | None, after: Measurement | None) -> tuple[float, float, float] | Absent:
    """Value, low and high of what the gate bounds: the metric after, or its ratio to the value before."""
    if not isinstance(after, Measured):
        return Absent(absent=_why("after", after))
    if gate.relative_to is None:
        return after.value, after.low, after.high
    if not isinstance(before, Measured):
        return Absent(absent=_why("before", before))
    if before.value <= 0:
        return Absent(absent=f"the value before is {before.value:g}, and there is no ratio to that")
    value, low, high = (point / before.value for point in (after.value, after.low, after.high))
    if not all(map(math.isfinite, (value, low, high))):
        return Absent(absent=f"the value before is {before.value:g}, too small to divide by")
    return value, low, high


def _why(when: str, measurement: Absent | None) -> str:
    return f"{when} the run, {measurement.absent}" if measurement else f"the metric was not scored {when} the run"
