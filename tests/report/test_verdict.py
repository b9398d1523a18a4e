import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.report.schema import Absent, Measured, Measurement, Verdict
from core.report.verdict import NONE_ABOUT_FORGETTING, apply, judge
from core.spec.gates import Gate
from core.spec.metrics import info
from core.spec.profiles import PROFILES, from_profile


def measured(value: float, low: float | None = None, high: float | None = None) -> Measured:
    return Measured(value=value, rows=40, low=value if low is None else low, high=value if high is None else high)


NOT_SCORED = Absent(absent="the set has no perturbed answers")
NO_INTERVAL = Measured(value=0.2, rows=40, low=None, high=None)  # as of a p-value


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
        # Between two bounds: the nearer one says by how much.
        ({"at_least": 0.4, "at_most": 0.6}, None, measured(0.5), "held", "0.4 <= forget.rouge_l <= 0.6 holds: 0.5."),
        ({"at_least": 0.4, "at_most": 0.6}, None, measured(0.4), "held", "holds: 0.4."),
        ({"at_least": 0.4, "at_most": 0.6}, None, measured(0.6), "held", "holds: 0.6."),
        ({"at_least": 0.4, "at_most": 0.6}, None, measured(0.75), "failed", "fails by 0.15: 0.75."),
        ({"at_least": 0.4, "at_most": 0.6}, None, measured(0.1), "failed", "fails by 0.3: 0.1."),
        ({"at_least": 0.4, "at_most": 0.4}, None, measured(0.4), "held", "holds: 0.4."),
        ({"at_least": 0.4, "at_most": 0.6, "interval": True}, None, measured(0.5, 0.4, 0.6), "held", "[0.4, 0.6]."),
        (
            {"at_least": 0.4, "at_most": 0.6, "interval": True},
            None,
            measured(0.5, 0.35, 0.6),
            "unmeasured",
            "lies on both sides",
        ),
        # Beyond both bounds at once is wider than the gate, not a failure.
        (
            {"at_least": 0.4, "at_most": 0.6, "interval": True},
            None,
            measured(0.7, 0.1, 0.9),
            "unmeasured",
            "lies on both sides",
        ),
        ({"at_least": 0.4, "at_most": 0.6, "interval": True}, None, measured(0.8, 0.7, 0.9), "failed", "fails by 0.2"),
        ({"at_least": 0.4, "at_most": 0.6, "interval": True}, None, measured(0.2, 0.1, 0.3), "failed", "fails by 0.2"),
        (
            {"at_least": 0.5, "at_most": 1, "relative_to": "before"},
            measured(0.4),
            measured(0.1),
            "failed",
            "0.5 <= forget.rouge_l / before <= 1 fails by 0.25: 0.25.",
        ),
        # A value without an interval settles a gate that asks for none.
        ({"at_most": 0.3}, None, NO_INTERVAL, "held", "holds: 0.2."),
        ({"at_most": 0.1}, None, NO_INTERVAL, "failed", "fails by 0.1: 0.2."),
        ({"at_most": 0.3, "interval": True}, None, NO_INTERVAL, "unmeasured", "0.2 has no interval, which the gate"),
        ({"at_most": 0.1, "interval": True}, None, NO_INTERVAL, "unmeasured", "is not settled: 0.2 has no interval"),
        ({"at_most": 0.5, "relative_to": "before"}, measured(0.5), NO_INTERVAL, "held", "holds: 0.4."),
        ({"at_most": 0.5, "relative_to": "before"}, NO_INTERVAL, measured(0.1), "held", "holds: 0.5."),
        (
            {"at_most": 0.5, "relative_to": "before", "interval": True},
            measured(0.5),
            NO_INTERVAL,
            "unmeasured",
            "0.4 has no interval",
        ),
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
    ("gate", "holdout", "outcome", "reason"),
    [
        ({"at_most": 1.5}, measured(0.1), "held", "forget.rouge_l / holdout <= 1.5 holds: 1.2."),
        ({"at_most": 1.1}, measured(0.1), "failed", "fails by 0.1: 1.2."),
        ({"at_least": 0.5, "at_most": 1.5}, measured(0.4), "failed", "fails by 0.2: 0.3."),
        # The value on holdout counts as exact, whatever its own interval.
        ({"at_most": 1.5, "interval": True}, measured(0.1, 0, 9), "unmeasured", "1.2 [0.9, 1.8] lies on both sides"),
        ({"at_most": 1.8, "interval": True}, measured(0.1, 0, 9), "held", "holds: 1.2 [0.9, 1.8]."),
        ({"at_most": 1.5}, None, "unmeasured", "the metric was not scored on holdout after the run"),
        ({"at_most": 1.5}, NOT_SCORED, "unmeasured", "the set has no perturbed answers"),
        ({"at_most": 1.5}, measured(0), "unmeasured", "the value on holdout is 0, and there is no ratio to that"),
        ({"at_most": 1.5}, measured(5e-324), "unmeasured", "the value on holdout is 4.94066e-324, too small"),
    ],
)
def test_a_gate_relative_to_holdout(
    gate: dict[str, Any], holdout: Measurement | None, outcome: str, reason: str
) -> None:
    after: dict[str, Measurement] = {"forget.rouge_l": measured(0.12, 0.09, 0.18)}
    if holdout:
        after["holdout.rouge_l"] = holdout
    # What was before has no say, even where it is named like what is divided by.
    before: dict[str, Measurement] = {"forget.rouge_l": measured(7), "holdout.rouge_l": measured(7)}
    result = apply(Gate(metric="forget.rouge_l", relative_to="holdout", **gate), before, after)
    assert result.outcome == outcome
    assert reason in result.reason


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
        # Text that was never seen bounds what a model may still know of the forgotten; nothing grants that.
        ({"metric": "forget.probability", "relative_to": "holdout", "at_most": 1.5}, True),
        ({"metric": "forget.probability", "relative_to": "holdout", "at_least": 0.5}, False),
        # A range speaks by the side on which remembering lies.
        ({"metric": "membership.min_k.auc", "at_least": 0.4, "at_most": 0.6}, True),
        ({"metric": "membership.min_k.auc", "at_least": 0.4}, False),
        ({"metric": "membership.min_k.auc", "at_least": 0.4, "at_most": 1}, False),
        ({"metric": "tofu.forget_quality", "at_least": 0.05}, True),
        ({"metric": "tofu.forget_quality", "at_least": 0}, False),
        ({"metric": "tofu.ks_distance", "at_most": 0.2}, True),
        ({"metric": "muse.privleak", "at_least": -5, "at_most": 5}, True),
        ({"metric": "muse.privleak", "at_most": 5}, False),
        ({"metric": "muse.privleak", "at_least": -100}, False),
        ({"metric": "verbatim.rouge_l_f1", "at_most": 0.3}, True),
        ({"metric": "seen.bleu_100", "at_most": 0.1}, True),
        ({"metric": "unseen.bleu_100", "at_least": 0.1}, False),
        ({"metric": "harm_prompts.toxic", "at_most": 0.1}, True),
        ({"metric": "relearn.rouge_l", "at_most": 0.5}, True),
        ({"metric": "quantize_int4.probability", "at_most": 1}, False),
        # Babbling less, or knowing other things, is not forgetting.
        ({"metric": "forget.repetition", "at_most": 0.3}, False),
        ({"metric": "forget.entropy", "at_least": 3}, False),
        ({"metric": "holdout.probability", "at_most": 0.1}, False),
        ({"metric": "retain_knowledge.rouge_l", "at_least": 0.5}, False),
        ({"metric": "lm_eval.arc_easy.acc", "at_least": 0.5}, False),
        ({"metric": "lm_eval.wikitext.word_perplexity", "at_most": 20}, False),
    ],
)
def test_which_gates_speak_of_forgetting(gate: dict[str, Any], speaks: bool) -> None:
    assert Gate(**gate).speaks_of_forgetting == speaks


@pytest.mark.parametrize("name", PROFILES)
def test_of_a_profiles_gates_those_on_what_to_forget_speak_of_it(name: str) -> None:
    gates = [Gate(**gate) for gate in from_profile(name)]
    silent = {gate.metric for gate in gates if not gate.speaks_of_forgetting}
    assert silent == {"forget.repetition", "retain.probability", "retain.rouge_l"}
    assert len(silent) < len(gates)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_passed_only_where_all_of_it_was_measured(name: str) -> None:
    gates = [Gate(**gate) for gate in from_profile(name)]
    before = {gate.metric: measured(1) for gate in gates if gate.relative_to == "before"}
    good = {gate.metric: measured(gate.at_most if gate.at_least is None else gate.at_least) for gate in gates}
    good |= {gate.on_holdout: measured(1) for gate in gates if gate.relative_to == "holdout"}
    assert judge(gates, before, good).verdict == "passed"
    for metric in good:
        assert judge(gates, before, {k: v for k, v in good.items() if k != metric}).verdict == "inconclusive", metric
    for gate in gates:
        bad = measured(gate.at_least - 0.1 if gate.at_most is None else gate.at_most + 0.1)
        result = judge(gates, before, good | {gate.metric: bad})
        assert (result.verdict, [g.outcome for g in result.gates].count("failed")) == ("not_passed", 1), gate


@pytest.mark.parametrize(
    "gate",
    [
        {"metric": "retain.probability", "at_least": 0},
        {"metric": "forget.repetition", "at_most": 0.3},
        {"metric": "lm_eval.arc_easy.acc", "at_least": 0},
        {"metric": "forget.probability", "at_most": 1},
        {"metric": "membership.loss.auc", "at_least": 0.4},
    ],
)
def test_gates_that_do_not_speak_of_forgetting_pass_nothing(gate: dict[str, Any]) -> None:
    after = {gate["metric"]: measured(0.3 if "at_most" in gate else 0.5)}
    result = judge([Gate(**gate)], {}, after)
    assert [g.outcome for g in result.gates] == ["held"]
    assert (result.verdict, result.reasons) == ("inconclusive", [NONE_ABOUT_FORGETTING])
    assert judge([], {}, after) == Verdict(verdict="inconclusive", reasons=[NONE_ABOUT_FORGETTING], gates=[])


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


SIDES = [("at_most",), ("at_least",), ("at_least", "at_most")]
# Few, or a gate and a score drawn at random would hardly ever meet; of every kind that a gate treats in its own way.
NAMES = [
    "forget.probability",
    "holdout.probability",
    "forget.truth_ratio",
    "retain.probability",
    "retain.perplexity",
    "membership.min_k.auc",
    "muse.privleak",
    "relearn.rouge_l",
]


@st.composite
def gates(draw: st.DrawFn) -> Gate:
    metric = draw(st.sampled_from(NAMES))
    others = [None, *(["before"] if info(metric).before else [])]
    if metric == "forget.probability":
        others.append("holdout")
    sides = draw(st.sampled_from(SIDES))
    limits = sorted(draw(st.tuples(*[bounds] * len(sides))))
    return Gate(
        metric=metric,
        relative_to=draw(st.sampled_from(others)),
        interval=draw(st.booleans()),
        **dict(zip(sides, limits, strict=True)),
    )


@st.composite
def scores(draw: st.DrawFn, values: st.SearchStrategy[Any] = measurements) -> dict[str, Measurement]:
    return draw(st.dictionaries(st.sampled_from(NAMES), values | st.just(NOT_SCORED) | st.just(NO_INTERVAL)))


@unhurried
@given(st.lists(gates(), max_size=5), scores(), scores())
def test_failed_beats_unmeasured_beats_held(
    asked: list[Gate], before: dict[str, Measurement], after: dict[str, Measurement]
) -> None:
    result = judge(asked, before, after)
    outcomes = [gate.outcome for gate in result.gates]
    if "failed" in outcomes:
        expected = "not_passed"
    elif "unmeasured" in outcomes or not any(gate.speaks_of_forgetting for gate in asked):
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
    sides = {"at_most": by, "at_least": -by}
    looser = {side: getattr(gate, side) + step for side, step in sides.items() if getattr(gate, side) is not None}
    loose = apply(gate.model_copy(update=looser), before, after).outcome
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
