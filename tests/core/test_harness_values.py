"""From documents' scores to a value and its interval: as of our own metrics, and through lm-eval's function else."""

import math
from typing import Any

import numpy as np
import pytest

from core.evaluation import stats
from core.evaluation.harness_values import Documents, averaged, measured
from core.report.schema import Absent, Measured


def test_a_mean_has_the_interval_of_any_other_metric() -> None:
    from lm_eval.api.metrics import mean, weighted_perplexity

    scores = [0.0, 1.0, 1.0, 0.0, 1.0, 0.5]
    assert measured(Documents(scores, mean), 500) == stats.measure(np.array(scores), 500)
    pairs = [(-3.0, 2), (-1.0, 4)]
    found = measured(Documents(pairs, weighted_perplexity), 500)
    assert isinstance(found, Measured)
    assert (found.value, found.low, found.high) == pytest.approx((math.exp(4 / 6), math.exp(1 / 4), math.exp(3 / 2)))


def test_documents_are_drawn_anew_within_their_task() -> None:
    from lm_eval.api.metrics import mean, median

    zeros, ones = Documents([0.0] * 4, mean), Documents([1.0] * 12, mean)
    # Drawn from all documents at once it would have a width.
    assert averaged(0.75, [zeros, ones], [0.25, 0.75], 100) == Measured(value=0.75, rows=16, low=0.75, high=0.75)
    mixed = Documents([0.0, 1.0] * 4, mean)
    found = averaged(0.75, [mixed, ones], [0.5, 0.5], 400)
    assert isinstance(found, Measured)
    alone = measured(mixed, 400)
    assert isinstance(alone, Measured)
    assert alone.low is not None
    assert found.low == pytest.approx(0.5 * alone.low + 0.5)
    # What is no mean of means has no such interval.
    without = Measured(value=0.75, rows=20, low=None, high=None)
    assert averaged(0.75, [mixed, ones], [0.9, 0.1], 100) == without
    assert averaged(0.75, [Documents(mixed.entries, median), ones], [0.5, 0.5], 100) == without
    assert averaged(math.nan, [mixed], [1.0], 100) == Absent(absent="a task of the group has no value")


def test_other_aggregations_are_drawn_through_lm_eval_s_own() -> None:
    from lm_eval.api.metrics import f1_score, matthews_corrcoef, median

    right, wrong = [(1, 1), (0, 0)] * 20, [(1, 0), (0, 1)] * 20
    for pairs, value in ((right, 1.0), (wrong, -1.0)):
        assert measured(Documents(pairs, matthews_corrcoef), 50) == Measured(
            value=value, rows=40, low=value, high=value
        )
    found = measured(Documents([*right, *wrong[:20]], f1_score), 200)
    assert isinstance(found, Measured)
    assert found.value == pytest.approx(2 / 3)
    assert found.low is not None
    assert found.high is not None
    # Its standard error is about 0.06.
    assert 0.46 < found.low < 0.6 < 0.73 < found.high < 0.87
    of_text = Documents([("gold", 1.0), ("made", 2.0)], lambda entries: len(entries))
    assert measured(of_text, 50) == Measured(value=2.0, rows=2, low=None, high=None)
    assert measured(Documents([3.0, 1.0, 2.0], median), 50) == Measured(value=2.0, rows=3, low=1.0, high=3.0)


@pytest.mark.parametrize(
    ("aggregate", "reason"),
    [
        (lambda _: {"a": 1.0}, "lm-eval gives no single number, but a dict"),
        (lambda _: math.nan, "the value is nan"),
        (lambda _: np.float32("inf"), "the value is inf"),
        (lambda entries: entries["a"], "lm-eval's aggregation failed: TypeError: list indices must be integers"),
        (lambda _: math.exp(1000), "the value is too large for a number"),
    ],
)
def test_what_is_no_number_is_absent(aggregate: Any, reason: str) -> None:
    found = measured(Documents([1.0, 2.0], aggregate), 50)
    assert isinstance(found, Absent)
    assert found.absent.startswith(reason)
