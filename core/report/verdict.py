"""The gates applied to what was measured, and the verdict they give: a failed gate beats an unmeasured one."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from core.report.schema import Absent, GateResult, Measured, Measurement, Verdict
from core.spec.gates import Gate, gate_dict

NONE_ABOUT_FORGETTING = "No gate speaks of forgetting, so nothing here says whether the forget set was forgotten."


def judge(
    gates: Sequence[Gate],
    before: Mapping[str, Measurement],
    after: Mapping[str, Measurement],
    unseen: str | None = None,
) -> Verdict:
    """The verdict of `gates` on the metrics measured before and after; `unseen`: what of the forget set was not looked
    at, which no gate can speak of.

    `passed` if all hold and one speaks of forgetting, `not_passed` if one fails, `inconclusive` otherwise.
    """
    results = [apply(gate, before, after) for gate in gates]
    failed = [result.reason for result in results if result.outcome == "failed"]
    if failed:
        return Verdict(verdict="not_passed", reasons=failed, gates=results)
    open_questions = [result.reason for result in results if result.outcome == "unmeasured"]
    if not any(gate.speaks_of_forgetting for gate in gates):
        open_questions.append(NONE_ABOUT_FORGETTING)
    if unseen is not None:
        open_questions.append(unseen)
    if open_questions:
        return Verdict(verdict="inconclusive", reasons=open_questions, gates=results)
    return Verdict(verdict="passed", reasons=[result.reason for result in results], gates=results)


def apply(gate: Gate, before: Mapping[str, Measurement], after: Mapping[str, Measurement]) -> GateResult:
    """One gate's result; `unmeasured` where a value is absent or the interval lies on both sides of the bound."""
    name = gate.describe()
    measured = _measured(gate, before, after)
    if isinstance(measured, Absent):
        reason = f"{name} could not be measured: {measured.absent}."
        return GateResult(gate=gate_dict(gate), outcome="unmeasured", observed=measured, reason=reason)
    value, ends = measured
    if gate.interval and ends is None:
        absent = Absent(absent=f"{value:.6g} has no interval")
        reason = f"{name} is not settled: {value:.6g} has no interval, which the gate asks for."
        return GateResult(gate=gate_dict(gate), outcome="unmeasured", observed=absent, reason=reason)
    points = (value, *(ends or ())) if gate.interval else (value,)
    seen = f"{value:.6g} [{points[1]:.6g}, {points[2]:.6g}]" if gate.interval else f"{value:.6g}"
    # A bootstrap interval may miss its own value; the gate asks for both.
    past = [beyond(gate, point) for point in points]
    outcome: Literal["held", "failed", "unmeasured"]
    if max(past) <= 0:
        outcome, reason = "held", f"{name} holds: {seen}."
    elif min(past) > 0 and not _around(gate, points):
        outcome, reason = "failed", f"{name} fails by {past[0]:.6g}: {seen}."
    else:
        outcome, reason = "unmeasured", f"{name} is not settled: {seen} lies on both sides of the bound."
    return GateResult(gate=gate_dict(gate), outcome=outcome, observed=value, reason=reason)


def beyond(gate: Gate, point: float) -> float:
    """How far `point` lies on the wrong side of the gate's nearer bound; negative on the right side."""
    above = -math.inf if gate.at_most is None else point - gate.at_most
    below = -math.inf if gate.at_least is None else gate.at_least - point
    return max(above, below)


def _around(gate: Gate, points: Sequence[float]) -> bool:
    """Whether the points lie beyond both bounds: an interval that holds the whole range settles nothing."""
    if gate.at_most is None or gate.at_least is None:
        return False
    return min(points) < gate.at_least and max(points) > gate.at_most


def observed(gate: Gate, before: Mapping[str, Measurement], after: Mapping[str, Measurement]) -> float | None:
    """What the gate bounds, without its interval; None where it could not be measured."""
    found = _measured(gate, before, after)
    return None if isinstance(found, Absent) else found[0]


Point = tuple[float, tuple[float, float] | None]


def _measured(gate: Gate, before: Mapping[str, Measurement], after: Mapping[str, Measurement]) -> Point | Absent:
    """Value and interval of what the gate bounds: the metric after, or its ratio to another value."""
    found = after.get(gate.metric)
    if not isinstance(found, Measured):
        return Absent(absent=_why("after", found))
    ends = None if found.low is None or found.high is None else (found.low, found.high)
    if gate.relative_to is None:
        return found.value, ends
    if gate.relative_to == "before":
        other, when = before.get(gate.metric), "before"
    else:
        other, when = after.get(gate.on_holdout or ""), "on holdout after"
    if not isinstance(other, Measured):
        return Absent(absent=_why(when, other))
    of = "the value before" if when == "before" else "the value on holdout"
    if other.value <= 0:
        return Absent(absent=f"{of} is {other.value:g}, and there is no ratio to that")
    ratio = [point / other.value for point in (found.value, *(ends or ()))]
    if not all(map(math.isfinite, ratio)):
        return Absent(absent=f"{of} is {other.value:g}, too small to divide by")
    return ratio[0], (ratio[1], ratio[2]) if ends else None


def _why(when: str, measurement: Absent | None) -> str:
    return f"{when} the run, {measurement.absent}" if measurement else f"the metric was not scored {when} the run"
