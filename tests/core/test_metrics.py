"""Each metric on rows computed by hand, what is absent and why, and the interval."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.evaluation import METRICS, metrics_of
from core.evaluation.score import RowScore
from core.evaluation.stats import measure, measure_ratio
from core.report.schema import Absent, Measured
from core.spec.metrics import METRICS as SPEC_METRICS

ROWS = [
    # probability exp(-0.5); two of three tokens right; r = exp(0.2 - 1.2)
    RowScore(2.0, 4, 2, 3, 0.2, [1.0, 1.4], rouge_l=0.25),
    # probability exp(-2); none of one right; r = exp(3 - 1)
    RowScore(4.0, 2, 0, 1, 3.0, [1.0], rouge_l=1.0),
    # a text: nothing to generate from, nothing to compare with; one of one right
    RowScore(0.0, 1, 1, 1),
    # an answer of an end of sequence alone; perturbations without a paraphrase
    RowScore(1.0, 1, 0, 0, None, [2.0], rouge_l=0.0),
]


def test_values_by_hand() -> None:
    forget, retain = metrics_of("forget", ROWS, 100), metrics_of("retain", ROWS, 100)
    probability = (math.exp(-0.5) + math.exp(-2) + 1 + math.exp(-1)) / 4
    wanted = {
        "forget.probability": (probability, 4),
        "forget.rouge_l": (1.25 / 3, 3),
        "forget.exact_memorization": ((2 / 3 + 0 + 1) / 3, 3),
        "forget.truth_ratio": ((math.exp(-1) + math.exp(-2)) / 2, 2),  # min(r, 1/r)
        "retain.probability": (probability, 4),
        "retain.rouge_l": (1.25 / 3, 3),
        "retain.exact_memorization": ((2 / 3 + 0 + 1) / 3, 3),
        "retain.truth_ratio": ((1 - math.exp(-1) + 0) / 2, 2),  # max(0, 1 - r)
        "retain.perplexity": (math.exp(7 / 8), 4),
    }
    found = forget | retain
    assert found.keys() == wanted.keys()
    for name, (value, rows) in wanted.items():
        measured = found[name]
        assert isinstance(measured, Measured)
        assert (measured.value, measured.rows) == (pytest.approx(value), rows), name


def test_what_cannot_be_measured_says_why() -> None:
    texts = [RowScore(1.0, 3, 1, 3)]
    found = metrics_of("forget", texts, 100)
    assert found["forget.truth_ratio"] == Absent(
        absent="no row has both a paraphrased and a perturbed answer that fit into data.max_length"
    )
    assert found["forget.rouge_l"] == Absent(absent="no row has a prompt to generate from")
    assert isinstance(found["forget.probability"], Measured)
    assert all(isinstance(m, Absent) for m in metrics_of("retain", [], 100).values())


def test_far_from_one_the_truth_ratio_stays_a_number() -> None:
    hopeless, sure = RowScore(1, 1, 0, 1, 1e5, [0.0]), RowScore(1, 1, 0, 1, 0.0, [1e5])
    for row in (hopeless, sure):
        forget = metrics_of("forget", [row], 100)["forget.truth_ratio"]
        assert isinstance(forget, Measured)
        assert 0 <= forget.value < 1e-300
    kept = [metrics_of("retain", [row], 100)["retain.truth_ratio"] for row in (hopeless, sure)]
    assert [m.value for m in kept if isinstance(m, Measured)] == [0, 1]
    perplexity = metrics_of("retain", [RowScore(1e6, 1)], 100)["retain.perplexity"]
    assert isinstance(perplexity, Measured)
    assert 1e300 < perplexity.value < math.inf


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_interval_holds_its_value_and_is_the_same_every_time(values: list[float]) -> None:
    first, second = measure(values, "none", 100), measure(values, "none", 100)
    assert isinstance(first, Measured)
    assert first == second
    assert first.low <= first.value <= first.high
    assert first.value == pytest.approx(np.mean(values))
    assert first.rows == len(values)


def test_the_interval_is_as_wide_as_the_normal_one_for_many_rows() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = measure(list(values), "none", 4000)
    assert isinstance(found, Measured)
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == (
        pytest.approx(found.value - half, abs=0.15 * half),
        pytest.approx(found.value + half, abs=0.15 * half),
    )


def test_perplexity_is_resampled_by_row() -> None:
    same = measure_ratio([2.0, 4.0, 8.0], [1, 2, 4], 200)
    assert isinstance(same, Measured)
    # Every row has the same loss a token, so no draw of rows can differ.
    assert (same.low, same.value, same.high) == pytest.approx((math.exp(2),) * 3)


def test_a_gate_can_speak_of_exactly_what_is_measured() -> None:
    measured = {f"{set_name}.{name}" for set_name, metrics in METRICS.items() for name in metrics}
    assert measured == set(SPEC_METRICS)
