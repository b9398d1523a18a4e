"""Membership scores by hand, and AUC and TPR against counting pairs, scikit-learn and the theory of ranks."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from core.evaluation import Evidence, measured
from core.evaluation.membership import SCORES
from core.evaluation.rows import RowScore
from core.evaluation.stats import Floats, with_interval
from core.evaluation.two_samples import auc, compare, tpr
from core.report.schema import Absent, Measured, Measurement
from tests.core.scored import each, scored


def of(name: str, row: RowScore) -> float | None:
    return SCORES[name].value(row)


def with_spread(log_probs: list[float], mean: list[float], std: list[float]) -> RowScore:
    spread = {"mean_log_p": np.array(mean, dtype=np.float32), "std_log_p": np.array(std, dtype=np.float32)}
    return scored(log_probs, ends=True, **spread)


def test_scores_by_hand() -> None:
    # The end of sequence, -9, counts nowhere.
    row = scored([-1.0, -4.0, -2.0, -3.0, -0.5, -9.0], ends=True, zlib_bytes=21, reference_loss=5.1, grad_norm=2.0)
    assert of("loss", row) == pytest.approx(-2.1)
    assert of("zlib", row) == pytest.approx(-10.5 / 21)
    # Of five tokens 40% are two, 60% three; 10% are one, as are 20% and 30%.
    lowest = {"min_k_10": -4, "min_k_20": -4, "min_k_30": -4, "min_k": -3.5, "min_k_50": -3.5, "min_k_60": -3}
    assert {name: of(name, row) for name in lowest} == pytest.approx(lowest)
    assert of("reference", row) == pytest.approx(5.1 - 2.1)
    assert of("grad_norm", row) == -2


def test_min_k_plus_plus_by_hand() -> None:
    # (-1 + 2) / 2, (-4 + 2) / 1, (-2 + 1) / 4: of three tokens 40% are one.
    assert of("min_k_plus_plus", with_spread([-1, -4, -2, 0], [-2, -2, -1, 0], [2, 1, 4, 1])) == -2
    # Of five tokens they are two: the mean of -2 and -1.
    plain = with_spread([-2, -1, 0, 1, 2, -9], [0] * 6, [1] * 6)
    assert of("min_k_plus_plus", plain) == -1.5
    # A prediction without any spread: the score is large, and a number.
    flat = of("min_k_plus_plus", with_spread([-1, 0], [0, 0], [0, 0]))
    assert flat is not None
    assert math.isfinite(flat)
    assert flat < -1000


@pytest.mark.parametrize("row", [RowScore(), scored([-1.0], ends=True), RowScore(nll=1.0, tokens=2)])
def test_a_row_without_an_answer_token_has_no_score(row: RowScore) -> None:
    assert {of(name, row) for name in SCORES} == {None}


def pairs(members: Floats, others: Floats) -> float:
    return float(np.mean([(m > o) + 0.5 * (m == o) for m in members for o in others]))


@pytest.mark.parametrize(("members", "others"), [(1, 1), (1, 40), (40, 1), (23, 31), (60, 60)])
@pytest.mark.parametrize("values", [2, 5, 1000])
def test_auc_is_the_share_of_pairs_in_order(members: int, others: int, values: int) -> None:
    rng = np.random.default_rng(members * 1000 + others + values)
    a, b = (rng.integers(0, values, n).astype(float) for n in (members, others))
    found, drawn = compare(a, b, auc, 50)
    assert found == pytest.approx(pairs(a, b), abs=1e-12)
    labels = [1] * members + [0] * others
    assert found == pytest.approx(roc_auc_score(labels, np.concatenate([a, b])), abs=1e-12)
    assert ((drawn >= 0) & (drawn <= 1)).all()


@pytest.mark.parametrize("others", [100, 150, 299, 300])
@pytest.mark.parametrize("values", [30, 10_000])
def test_tpr_is_the_highest_point_of_the_curve_left_of_one_percent(others: int, values: int) -> None:
    rng = np.random.default_rng(others + values)
    a, b = rng.integers(values // 3, values, 80).astype(float), rng.integers(0, values, others).astype(float)
    wrong, right, _ = roc_curve([1] * 80 + [0] * others, np.concatenate([a, b]), drop_intermediate=False)
    found, _ = compare(a, b, tpr, 10)
    assert found == pytest.approx(right[wrong <= 0.01].max(), abs=1e-12)


def test_tpr_by_hand() -> None:
    # One of 100 may be wrong: the threshold is the second highest holdout score, 98, and only what is above it counts.
    holdout = np.arange(100.0)
    assert compare(np.array([98.0, 98.5, 200.0, 3.0]), holdout, tpr, 10)[0] == 0.5
    # Below all forget rows, and equal to all of them.
    assert compare(np.array([1000.0]), holdout, tpr, 10)[0] == 1
    assert compare(np.zeros(5), np.zeros(100), tpr, 10)[0] == 0


def test_every_draw_is_the_statistic_of_rows_drawn_anew() -> None:
    # Two forget rows above and below one holdout row: a draw's AUC is the share of those above.
    drawn = compare(np.array([1.0, 3.0]), np.array([2.0]), auc, 4000)[1]
    assert set(drawn) == {0, 0.5, 1}
    assert np.mean(drawn == 0.5) == pytest.approx(0.5, abs=0.04)


def test_auc_interval_is_as_wide_as_ranks_say() -> None:
    rng = np.random.default_rng(5)
    n, m = 300, 200
    found = with_interval(*_same(rng.normal(size=n), rng.normal(size=m)))
    assert found.low is not None
    assert found.high is not None
    # The variance of Mann and Whitney's U, where both samples are of one distribution.
    width = 2 * 1.96 * math.sqrt((n + m + 1) / (12 * n * m))
    assert found.high - found.low == pytest.approx(width, rel=0.15)


def test_forget_and_holdout_are_drawn_each_for_itself() -> None:
    scores = np.arange(250.0)
    # Drawn together, a sample against itself would be 0.5 in every draw.
    drawn = compare(scores, scores, auc, 2000)[1]
    assert drawn.std() == pytest.approx(math.sqrt(501 / (12 * 250**2)), rel=0.1)


def _same(members: Floats, others: Floats) -> tuple[float, int, Floats]:
    value, drawn = compare(members, others, auc, 2000)
    return value, len(members), drawn


def test_auc_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    truth = 0.5 * (1 + math.erf(0.5))  # of normal scores, one apart
    held = 0
    for _ in range(150):
        value, drawn = compare(rng.normal(1, 1, 60), rng.normal(0, 1, 60), auc, 200)
        found = with_interval(value, 120, drawn)
        held += found.low is not None and found.high is not None and found.low <= truth <= found.high
    assert 0.87 <= held / 150 <= 0.99


def membership(forget: list[RowScore], holdout: list[RowScore]) -> dict[str, Measurement]:
    found = measured(Evidence({"forget": forget, "holdout": holdout}), 200)
    return {name.removeprefix("membership."): m for name, m in found.items() if name.startswith("membership.")}


def test_a_remembered_set_has_an_auc_of_one() -> None:
    rows = {"zlib_bytes": 8, "reference_loss": 1.0}
    forget = [scored([-0.1, -0.2], grad_norm=0.1, **rows) for _ in range(3)]
    holdout = [scored([-3.0, -2.0], grad_norm=5.0, **rows) for _ in range(120)]
    for row in forget + holdout:
        row.mean_log_p, row.std_log_p = np.full(2, -1, dtype=np.float32), np.ones(2, dtype=np.float32)
    found = membership(forget, holdout)
    assert len(found) == 22
    assert set(map(str, found.values())) == {str(Measured(value=1, rows=123, low=1, high=1))}
    # The other way round, nothing is found; equal rows are not told apart.
    turned = {name: m for name, m in membership(holdout, forget).items() if name.endswith("auc")}
    assert set(map(str, turned.values())) == {str(Measured(value=0, rows=123, low=0, high=0))}
    same = membership(holdout, holdout)["min_k.auc"]
    assert same == Measured(value=0.5, rows=240, low=0.5, high=0.5)


def test_what_cannot_be_measured_says_why() -> None:
    found = membership(each([-1.0]), [*each([-2.0] * 99), RowScore()])
    # Of one row all draws are alike, which says nothing of another.
    assert found["loss.auc"] == Measured(value=1, rows=100, low=None, high=None)
    why = {name: m.absent for name, m in found.items() if isinstance(m, Absent)}
    assert "at least 100 holdout rows, and 99 can be counted" in why["loss.tpr"]
    for name in ("zlib", "min_k_plus_plus", "reference", "grad_norm"):
        assert f"membership '{name}' asks for" in why[f"{name}.auc"]
    assert {m for m in membership([], each([-1.0])).values() if m != Absent(absent="no forget rows")} == set()
    assert {m for m in membership(each([-1.0]), []).values() if m != Absent(absent="no holdout rows")} == set()


def test_scores_that_are_no_numbers_are_left_out() -> None:
    found = membership(each([-1.0, math.nan, -math.inf]), each([-2.0, -0.5]))
    assert isinstance(found["loss.auc"], Measured)
    assert (found["loss.auc"].value, found["loss.auc"].rows) == (0.5, 3)
    assert isinstance(membership(each([math.nan]), each([-2.0]))["loss.auc"], Absent)


def privleak(own: list[list[float]], retrained: list[list[float]]) -> Measurement:
    rows, others = ({"forget": each(f), "holdout": each(h)} for f, h in (own, retrained))
    return measured(Evidence(rows, others), 400)["muse.privleak"]


def test_privleak_by_hand() -> None:
    holdout = [-2.0, -3.0, -0.5, -4.0]
    even = [[-2.5], holdout]  # AUC 1/2
    # AUC 3/4: (0.25 - 0.5) / 0.5
    some = privleak([[-1.0], holdout], even)
    assert isinstance(some, Measured)
    assert (some.value, some.rows) == (-50, 5)
    # Some draws hold no row on one side of -2.5; of many rows none does.
    assert some.low is None
    even = [[-2.5], holdout * 5]
    remembered, forgotten = privleak([[-0.1] * 2, holdout], even), privleak([[-9.0] * 2, holdout], even)
    assert remembered == Measured(value=-100, rows=6, low=-100, high=-100)
    assert isinstance(forgotten, Measured)
    assert (forgotten.value, forgotten.rows) == (100, 6)
    assert forgotten.low is not None
    assert forgotten.high is not None
    assert 0 < forgotten.low < 100 < forgotten.high


def test_privleak_of_the_retrained_model_itself_is_surely_nothing() -> None:
    rng = np.random.default_rng(2)
    own = [list(-rng.exponential(1, 50)), list(-rng.exponential(1, 70))]
    assert privleak(own, own) == Measured(value=0, rows=120, low=0, high=0)


def test_privleak_that_cannot_be_measured_says_why() -> None:
    some = [[-1.0, -2.0], [-3.0, -1.5]]
    found = privleak(some, [[-1.0], [-2.0]])
    assert isinstance(found, Absent)
    assert "AUC is 1" in found.absent
    assert privleak(some, [[-1.0], []]) == Absent(absent="of the retrained model, no holdout rows")
    alone = measured(Evidence({"forget": each(some[0]), "holdout": each(some[1])}), 100)["muse.privleak"]
    assert isinstance(alone, Absent)
    assert "evaluation.retrained" in alone.absent
    # Many a draw of so few rows has no ratio: the value is right, how sure it is cannot be said.
    unsure = privleak(some, some)
    assert unsure == Measured(value=0, rows=4, low=None, high=None)
