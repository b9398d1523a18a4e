import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.report.schema import Absent, Measured, Measurement, Verdict
from core.report.verdict import NONE_ABOUT_FORGETTING, apply, judge, speaks_of_forgetting
from core.spec.evaluation import Gate
from core.spec.metrics import METRICS


def measured(value: float, low: float | None = None, high: float | None = None) -> Measured:
    return Measured(value=value, rows=40, low=value if low is None else low, high=value if high is None else high)


NOT_SCORED = Absent(absent="the set has no perturbed answers")


# after: the value, or (value, low, high), or why there is none.
@pytest.mark.parametrize(
    ("gate", "before", "after", "outcome", "reason"),
    [
        ({"at_most": 0.3}, None, measured(0.2), "held", "forget.rouge_l <= 0.3 holds: 0.2."),
        ({"at_most": 0.3}, None, measured(0.3), "held", "forget.rouge_l <= 0.3 holds: 0.3."),
        ({"at_most": 0.3}, None, measured(0.45), "failed", "forget.rouge_l <= 0.3 fails by 0.15: 0.45."),
        ({"at_least": 0.3}, None, measured(0.3), "held", "forget.rouge_l >= 0.3 holds: 0.3."),
        ({"at_least": 0.3}, None, measured(0.25), "failed", "forget.rouge_l >= 0.3 fails by 0.05: 0.25."),
        # Without `interval` the value alone is looked at.
        ({"at_most": 0.3}, None, measured(0.2, 0.1, 0.9), "held", "forget.rouge_l <= 0.3 holds: 0.2."),
        ({"at_most": 0.3, "interval": True}, None, measured(0.2, 0.1, 0.3), "held", "holds: 0.2 [0.1, 0.3]."),
        ({"at_most": 0.3, "interval": True}, None, measured(0.2, 0.1, 0.31), "unmeasured", "lies on both sides"),
        ({"at_most": 0.3, "interval": True}, None, measured(0.4, 0.3, 0.5), "unmeasured", "lies on both sides"),
        ({"at_most": 0.3, "interval": True}, None, measured(0.4, 0.35, 0.5), "failed", "fails by 0.1: 0.4 [0.35, 0.5]"),
        ({"at_least": 0.3, "interval": True}, None, measured(0.4, 0.3, 0.5), "held", "holds"),
        ({"at_least": 0.3, "interval": True}, None, measured(0.4, 0.29, 0.5), "unmeasured", "lies on both sides"),
        ({"at_least": 0.3, "interval": True}, None, measured(0.2, 0.1, 0.29), "failed", "fails by 0.1"),
        # A bootstrap interval that misses its own value does not hide it.
        ({"at_most": 0.3, "interval": True}, None, measured(0.35, 0.1, 0.2), "unmeasured", "lies on both sides"),
        (
            {"at_most": 0.1, "relative_to": "before"},
            measured(0.8),
            measured(0.08),
            "held",
            "/ before <= 0.1 holds: 0.1",
        ),
        ({"at_most": 0.1, "relative_to": "before"}, measured(0.8), measured(0.4), "failed", "fails by 0.4: 0.5"),
        (
            {"at_least": 0.9, "relative_to": "before", "interval": True},
            measured(0.5, 0.4, 0.6),
            measured(0.5, 0.46, 0.55),
            "held",
            "holds: 1 [0.92, 1.1]",
        ),
        (
            {"at_least": 0.9, "relative_to": "before", "interval": True},
            measured(0.5, 0.4, 0.6),
            measured(0.46, 0.4, 0.5),
            "unmeasured",
            "0.92 [0.8, 1] lies on both sides",
        ),
        ({"at_most": 0.3}, measured(1), None, "unmeasured", "the metric was not scored after the run"),
        ({"at_most": 0.3}, measured(1), NOT_SCORED, "unmeasured", "after the run, the set has no perturbed answers"),
        ({"at_most": 0.3, "relative_to": "before"}, None, measured(0.1), "unmeasured", "not scored before the run"),
        ({"at_most": 0.3, "relative_to": "before"}, NOT_SCORED, measured(0), "unmeasured", "before the run, the set"),
        ({"at_most": 0.3, "relative_to": "before"}, measured(0), measured(0), "unmeasured", "the value before is 0"),
        (
            {"at_most": 0.3, "relative_to": "before"},
            measured(-1),
            measured(0.5),
            "unmeasured",
            "the value before is -1",
        ),
        ({"at_most": 0.3, "relative_to": "before"}, measured(5e-324), measured(1), "unmeasured", "too small"),
    ],
)
def test_one_gate(
    gate: dict[str, Any], before: Measurement | None, after: Measurement | None, outcome: str, reason: str
) -> None:
    name = "forget.rouge_l"
    result = apply(
        Gate(metric=name, **gate),
        {name: before} if before else {},
        {name: after} if after else {},
    )
    assert result.outcome == outcome
    assert reason in result.reason
    assert result.gate == {"metric": name, "interval": False, **gate}
    assert isinstance(result.observed, Absent) == ("lies on" not in reason and outcome == "unmeasured")


@pytest.mark.parametrize(
    ("gate", "speaks"),
    [
        ({"metric": "forget.probability", "at_most": 0.1}, True),
        ({"metric": "forget.rouge_l", "at_most": 0.3, "relative_to": "before"}, True),
        ({"metric": "forget.truth_ratio", "at_least": 0.5}, True),
        ({"metric": "forget.truth_ratio", "at_least": 1.2, "relative_to": "before"}, True),
        # Still fluent, or still remembered: a wish, but not to forget.
        ({"metric": "forget.probability", "at_least": 0.1}, False),
        ({"metric": "forget.truth_ratio", "at_most": 0.5}, False),
        # Granted by every model, or by the untouched one.
        ({"metric": "forget.probability", "at_most": 1}, False),
        ({"metric": "forget.truth_ratio", "at_least": 0}, False),
        ({"metric": "forget.rouge_l", "at_most": 1, "relative_to": "before"}, False),
        ({"metric": "forget.truth_ratio", "at_least": 0.9, "relative_to": "before"}, False),
        ({"metric": "retain.probability", "at_least": 0.9, "relative_to": "before"}, False),
        ({"metric": "retain.perplexity", "at_most": 20}, False),
    ],
)
def test_which_gates_speak_of_forgetting(gate: dict[str, Any], speaks: bool) -> None:
    assert speaks_of_forgetting(Gate(**gate)) == speaks


HELD, FAILED, UNMEASURED = (
    Gate(metric="forget.probability", at_most=0.5),
    Gate(metric="forget.rouge_l", at_most=0.1),
    Gate(metric="forget.truth_ratio", at_least=0.5),
)
KEPT, LOST = Gate(metric="retain.probability", at_least=0.5), Gate(metric="retain.rouge_l", at_least=0.5)
AFTER: dict[str, Measurement] = {
    "forget.probability": measured(0.2),
    "forget.rouge_l": measured(0.2),
    "forget.truth_ratio": NOT_SCORED,
    "retain.probability": measured(0.9),
    "retain.rouge_l": measured(0.4),
}


@pytest.mark.parametrize(
    ("gates", "verdict", "of"),
    [
        ([HELD], "passed", [HELD]),
        ([HELD, KEPT], "passed", [HELD, KEPT]),
        ([HELD, FAILED], "not_passed", [FAILED]),
        ([HELD, UNMEASURED], "inconclusive", [UNMEASURED]),
        ([UNMEASURED], "inconclusive", [UNMEASURED]),
        ([UNMEASURED, FAILED, LOST, HELD], "not_passed", [FAILED, LOST]),
        ([KEPT], "inconclusive", []),
        ([LOST], "not_passed", [LOST]),
        ([], "inconclusive", []),
        ([KEPT, Gate(metric="forget.probability", at_least=0.1)], "inconclusive", []),
        ([KEPT, Gate(metric="forget.probability", at_most=1)], "inconclusive", []),
    ],
)
def test_the_verdict(gates: list[Gate], verdict: str, of: list[Gate]) -> None:
    result = judge(gates, {}, AFTER)
    assert result.verdict == verdict
    assert [line for line in result.reasons if line != NONE_ABOUT_FORGETTING] == [
        r.reason for gate, r in zip(gates, result.gates, strict=True) if gate in of
    ]
    assert (NONE_ABOUT_FORGETTING in result.reasons) == (not of)


# The machine may be busy; how long an example takes says nothing.
unhurried = settings(deadline=None)
finite = st.floats(allow_nan=False, allow_infinity=False)
bounds = st.floats(-1, 2)
measurements = st.builds(lambda a, b, c: measured(b, min(a, c), max(a, c)), *[bounds] * 3)


@st.composite
def gates(draw: st.DrawFn) -> Gate:
    return Gate(
        metric=draw(st.sampled_from(sorted(METRICS))),
        relative_to=draw(st.sampled_from([None, "before"])),
        interval=draw(st.booleans()),
        **{draw(st.sampled_from(["at_most", "at_least"])): draw(bounds)},
    )


@st.composite
def scores(draw: st.DrawFn, values: st.SearchStrategy[Any] = measurements) -> dict[str, Measurement]:
    return draw(st.dictionaries(st.sampled_from(sorted(METRICS)), values | st.just(NOT_SCORED)))


@unhurried
@given(st.lists(gates(), max_size=5), scores(), scores())
def test_failed_beats_unmeasured_beats_held(
    asked: list[Gate], before: dict[str, Measurement], after: dict[str, Measurement]
) -> None:
    result = judge(asked, before, after)
    outcomes = [gate.outcome for gate in result.gates]
    if "failed" in outcomes:
        expected = "not_passed"
    elif "unmeasured" in outcomes or not any(speaks_of_forgetting(gate) for gate in asked):
        expected = "inconclusive"
    else:
        expected = "passed"
    assert result.verdict == expected
    assert result.reasons
    assert len(outcomes) == len(asked)


@unhurried
@given(gates(), scores(), scores())
def test_asking_for_the_interval_is_stricter(
    gate: Gate, before: dict[str, Measurement], after: dict[str, Measurement]
) -> None:
    """It may turn held or failed into unmeasured, and nothing else."""
    plain, strict = (
        apply(gate.model_copy(update={"interval": interval}), before, after).outcome for interval in (False, True)
    )
    assert strict in (plain, "unmeasured")


@unhurried
@given(gates(), scores(), scores(), st.floats(0, 1))
def test_a_looser_bound_holds_where_the_tighter_one_held(
    gate: Gate, before: dict[str, Measurement], after: dict[str, Measurement], by: float
) -> None:
    side, step = ("at_most", by) if gate.at_most is not None else ("at_least", -by)
    loose = apply(gate.model_copy(update={side: getattr(gate, side) + step}), before, after).outcome
    tight = apply(gate, before, after).outcome
    order = ["failed", "unmeasured", "held"]
    assert order.index(loose) >= order.index(tight)


@unhurried
@given(bounds, bounds)
def test_a_value_fails_exactly_one_of_two_opposite_gates_unless_it_is_the_bound(value: float, bound: float) -> None:
    after: dict[str, Measurement] = {"forget.rouge_l": measured(value)}
    outcomes = [
        apply(Gate(metric="forget.rouge_l", **{side: bound}), {}, after).outcome for side in ("at_most", "at_least")
    ]
    assert outcomes.count("failed") == (value != bound)
    assert "unmeasured" not in outcomes


@unhurried
@given(st.lists(gates(), max_size=3), scores(finite.map(measured)), scores(finite.map(measured)))
def test_every_verdict_can_be_written_and_read(
    asked: list[Gate], before: dict[str, Measurement], after: dict[str, Measurement]
) -> None:
    result = judge(asked, before, after)
    assert Verdict.model_validate_json(result.model_dump_json()) == result
    assert all(isinstance(g.observed, Absent) or math.isfinite(g.observed) for g in result.gates)
