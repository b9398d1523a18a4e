"""Forget quality against scipy and itself, and model utility by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ks_2samp

from core.evaluation import Evidence, measured
from core.evaluation.rows import RowScore
from core.report.schema import Absent, Measured, Measurement


def with_ratios(logs: Sequence[float]) -> list[RowScore]:
    """Rows with these log truth ratios."""
    return [RowScore(nll=1.0, tokens=2, paraphrase_loss=5 + r, perturbed_losses=[4.0, 6.0]) for r in logs]


def forget(own: Sequence[float], retrained: Sequence[float], resamples: int = 400) -> tuple[Measurement, Measurement]:
    evidence = Evidence({"forget": with_ratios(own)}, {"forget": with_ratios(retrained)})
    found = measured(evidence, resamples)
    return found["tofu.forget_quality"], found["tofu.ks_distance"]


def test_the_retrained_model_against_itself() -> None:
    ratios = np.random.default_rng(0).normal(size=150)
    quality, distance = forget(list(ratios), list(ratios))
    assert quality == Measured(value=1, rows=150, low=None, high=None)
    # Both models' rows are of the same records, so that they are drawn together.
    assert distance == Measured(value=0, rows=150, low=0, high=0)


def test_a_model_that_remembers_is_far_from_it() -> None:
    rng = np.random.default_rng(1)
    quality, distance = forget(list(rng.normal(-2, 1, 200)), list(rng.normal(0, 1, 190)))
    assert isinstance(quality, Measured)
    assert isinstance(distance, Measured)
    assert quality.value < 1e-3
    # Two normal distributions, two apart: D = 2 Φ(1) - 1.
    assert distance.value == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.1)
    assert distance.low is not None
    assert distance.high is not None
    assert distance.low < distance.value < distance.high


@pytest.mark.parametrize(("own", "retrained", "values"), [(1, 1, 5), (1, 30, 5), (40, 30, 4), (50, 50, 1000)])
def test_both_are_scipys(own: int, retrained: int, values: int) -> None:
    rng = np.random.default_rng(own + retrained)
    a, b = (rng.integers(0, values, n).astype(float) for n in (own, retrained))
    quality, distance = forget(list(a), list(b), 100)
    wanted = ks_2samp(np.exp(a / values), np.exp(b / values))
    assert isinstance(quality, Measured)
    assert isinstance(distance, Measured)
    assert quality.value == pytest.approx(wanted.pvalue)
    assert distance.value == pytest.approx(wanted.statistic)


def test_ratios_that_underflow_are_told_apart() -> None:
    # As ratios they would all be 0.
    quality, distance = forget([-800.0 - i for i in range(20)], [-2000.0 - i for i in range(20)], 100)
    assert isinstance(quality, Measured)
    assert quality.value < 1e-3
    assert distance == Measured(value=1, rows=20, low=1, high=1)


def test_quality_without_a_retrained_model_or_without_ratios_is_absent() -> None:
    alone = measured(Evidence({"forget": with_ratios([0.0])}), 100)
    asked = measured(Evidence({"forget": with_ratios([0.0])}, missing={"retrained": "the folder is empty"}), 100)
    plain, theirs = forget([], [0.0]), forget([0.0], [math.nan])
    for i, name in enumerate(("tofu.forget_quality", "tofu.ks_distance")):
        told = alone[name]
        assert isinstance(told, Absent)
        assert "evaluation.retrained" in told.absent
        assert asked[name] == Absent(absent="the folder is empty")
        assert plain[i] == Absent(absent="no rows")
        other = theirs[i]
        assert isinstance(other, Absent)
        assert other.absent.startswith("of the retrained model, no row has both")


# Of each set: probability exp(-log 2), ROUGE-L 0.4, truth ratio 1 - exp(-1) on retain.
ROW = RowScore(nll=math.log(2), tokens=1, paraphrase_loss=1.0, perturbed_losses=[2.0], rouge_l=0.4)
# P = 1/4 against 1/4 and 1/2; the truth ratio of the answer itself: r = (1/8)^(1/2) / (1/4) > 1, so 0.
UNSURE = RowScore(nll=2 * math.log(4), tokens=2, perturbed_losses=[math.log(4), math.log(2)], rouge_l=0.8)
# P = 1/2 against 1/8: 0.8; r = 1/4.
FACT = RowScore(nll=math.log(2), tokens=1, perturbed_losses=[math.log(8)], rouge_l=0.6)


def utility(retain: Sequence[RowScore], authors: Sequence[RowScore], facts: Sequence[RowScore]) -> Measurement:
    rows = {"retain": retain, "real_authors": authors, "world_facts": facts}
    return measured(Evidence(rows), 400)["tofu.model_utility"]


def test_model_utility_by_hand() -> None:
    found = utility([ROW, ROW], [FACT, FACT], [FACT, UNSURE])
    nine = [0.5, 0.4, 1 - math.exp(-1), 0.8, 0.6, 0.75, (0.8 + 0.25) / 2, (0.6 + 0.8) / 2, 0.75 / 2]
    assert isinstance(found, Measured)
    assert (found.value, found.rows) == (pytest.approx(9 / sum(1 / x for x in nine)), 6)
    # Half of the draws of two rows hold both; in a quarter each, world facts' truth ratio is 0.75 or 0.
    assert found.low == 0
    assert found.high == pytest.approx(9 / sum(1 / x for x in [*nine[:3], 0.8, 0.6, 0.75, 0.8, 0.6, 0.75]))


def test_one_of_nine_that_is_0_makes_0() -> None:
    assert utility([ROW] * 2, [FACT] * 2, [UNSURE] * 2) == Measured(value=0, rows=6, low=0, high=0)


def test_the_first_of_nine_that_is_missing_is_named() -> None:
    unspoken, plain = replace(FACT, rouge_l=None), replace(ROW, paraphrase_loss=None)
    said = "world_facts.rouge_l is absent: no row has a prompt to generate from"
    assert utility([ROW], [FACT], [unspoken, replace(unspoken, perturbed_losses=[])]) == Absent(absent=said)
    found = utility([plain], [unspoken], [FACT])
    assert isinstance(found, Absent)
    assert found.absent.startswith("retain.truth_ratio is absent: no row has both")
    assert utility([ROW], [], [FACT]) == Absent(absent="real_authors.probability is absent: no rows")


def test_rows_that_lack_a_number_are_left_out_of_that_number() -> None:
    plain = replace(ROW, paraphrase_loss=None, rouge_l=None)
    with_text = utility([ROW] * 30 + [plain] * 10 + [RowScore()], [FACT], [FACT])
    without = utility([ROW] * 30, [FACT], [FACT])
    assert isinstance(with_text, Measured)
    assert isinstance(without, Measured)
    assert with_text.value == pytest.approx(without.value)
    assert (with_text.rows, without.rows) == (42, 32)


def test_utility_has_no_interval_where_too_many_draws_lack_a_number() -> None:
    # A third of all draws of these rows hold none with a ROUGE-L.
    found = utility([ROW] + [replace(ROW, rouge_l=None)] * 20, [FACT], [FACT])
    assert isinstance(found, Measured)
    assert (found.low, found.high) == (None, None)
