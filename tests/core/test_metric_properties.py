"""Whatever the rows are, a metric is a number in its range with an interval around it, or absent with a reason."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.evaluation import METRICS, Evidence, measured, of_attack
from core.evaluation.fluency import entropy, repetition
from core.evaluation.memorisation import exact_memorization, extraction_strength
from core.evaluation.rows import RowScore
from core.evaluation.two_samples import auc, compare, ks, tpr
from core.report.schema import Absent, Measured
from core.spec.metrics import SETS, info
from tests.core.scored import scored

losses = st.one_of(st.sampled_from([0.0, 1.0, 1e6]), st.floats(0, 1e6, width=32))
shares = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))


def maybe(values: st.SearchStrategy[float]) -> st.SearchStrategy[float | None]:
    return st.one_of(st.none(), values)


@st.composite
def rows(draw: st.DrawFn) -> RowScore:
    """A row of any length, of which anything may be missing."""
    tokens = draw(st.lists(losses, max_size=5))
    ends = draw(st.booleans()) and bool(tokens)
    text = draw(maybe_text)
    matches = draw(st.lists(st.integers(0, 9), min_size=4, max_size=4))
    totals = [n + draw(st.integers(0, 3)) for n in matches]
    row = scored(
        [-loss for loss in tokens],
        draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens))),
        ends,
        paraphrase_loss=draw(maybe(losses)),
        perturbed_losses=draw(st.lists(losses, max_size=3)),
        zlib_bytes=draw(st.one_of(st.none(), st.integers(1, 99))),
        reference_loss=draw(maybe(losses)),
        grad_norm=draw(maybe(losses)),
        generated=text,
        rouge_l=draw(maybe(shares)),
        rouge_l_f1=draw(maybe(shares)),
        repetition=None if text is None else repetition(text.split()),
        entropy=None if text is None else entropy(text.split()),
        nearest=draw(st.one_of(st.none(), st.booleans())),
        toxicity=draw(maybe(shares)),
        continued={name: draw(shares) for name in draw(st.sets(st.sampled_from(["rouge_l_100", "rouge_l_300"])))},
        bleu={"100": [*matches, *totals, totals[0], draw(st.integers(1, 9))]} if draw(st.booleans()) else {},
    )
    if draw(st.booleans()):
        row.mean_log_p = row.log_probs - np.float32(draw(losses))
        row.std_log_p = np.full(len(tokens), draw(losses), dtype=np.float32)
    return row


maybe_text = st.one_of(st.none(), st.text(max_size=40), st.sampled_from(["я я я я", "忘 却 の 川", "🌊 🌊 🌊 🌊 🌊"]))
# No row, one, several, and the same row over and over.
some = st.one_of(st.lists(rows(), max_size=4), rows().map(lambda row: [row] * 120))
evidence = st.builds(
    Evidence,
    st.dictionaries(st.sampled_from(sorted(SETS)), some, min_size=3),
    st.one_of(st.just({}), st.fixed_dictionaries({"forget": some, "holdout": some})),
)


def check(name: str, found: object) -> None:
    assert isinstance(found, Measured | Absent), name
    if isinstance(found, Absent):
        return
    known = info(name)
    ends = [found.value]
    if found.low is None or found.high is None:
        assert found.low is None, name
        assert found.high is None, name
        # A sample of one row has none, nor have statistics that some draws leave without a value.
        single = found.rows == 1 or len(info(name).sets) > 1
        assert single or name in ("tofu.forget_quality", "tofu.ks_distance", "muse.privleak")
    else:
        assert found.low <= found.value <= found.high, name
        ends += [found.low, found.high]
    assert all(math.isfinite(end) and end >= known.lowest for end in ends), name
    assert known.highest is None or max(ends) <= known.highest, name


@settings(max_examples=40, deadline=None)
@given(evidence)
def test_every_metric_is_a_number_in_its_range_or_absent(given_rows: Evidence) -> None:
    found = measured(given_rows, 100)
    assert found.keys() == {n for n in METRICS if given_rows.rows.keys() >= set(info(n).sets)}
    for name, measurement in found.items():
        check(name, measurement)
    for name, measurement in of_attack(given_rows.rows.get("forget", []), 100).items():
        check(f"relearn.{name}", measurement)


@settings(max_examples=8, deadline=None)
@given(evidence)
def test_the_same_rows_give_the_same_measurements(given_rows: Evidence) -> None:
    assert measured(given_rows, 100) == measured(given_rows, 100)


@settings(max_examples=20, deadline=None)
@given(evidence)
def test_the_order_of_the_rows_is_of_no_account(given_rows: Evidence) -> None:
    given_order = measured(given_rows, 100)
    turned = Evidence(*({s: [*reversed(r)] for s, r in of.items()} for of in (given_rows.rows, given_rows.retrained)))
    for name, other in measured(turned, 100).items():
        one = given_order[name]
        if isinstance(one, Measured) and isinstance(other, Measured):
            assert (one.value, one.rows) == (pytest.approx(other.value, rel=1e-9), other.rows), name
        elif not name.endswith("perplexity"):  # which of a few rows is drawn says how far up its interval reaches
            assert one == other, name


@settings(max_examples=50, deadline=None)
@given(rows())
def test_memorisation_counts_the_answer_without_its_end(row: RowScore) -> None:
    exact, strength = exact_memorization(row), extraction_strength(row)
    if row.counted <= 0:
        assert exact is None
        assert strength is None
        return
    assert exact is not None
    assert strength is not None
    # What argmax writes to the end is right token by token.
    assert 0 <= strength <= exact <= 1
    # Whether the end of sequence was right is of no account.
    assert not row.ends or exact == exact_memorization(replace(row, hits=np.append(row.hits[:-1], not row.hits[-1])))


samples = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=12).map(np.array)


@settings(max_examples=60, deadline=None)
@given(samples, samples)
def test_comparisons_depend_on_order_alone_and_know_their_sides(a: np.ndarray, b: np.ndarray) -> None:
    found = compare(a, b, auc, 30)[0]
    assert found == sum(float(x > y) + 0.5 * float(x == y) for x in a for y in b) / (len(a) * len(b))
    assert found + compare(b, a, auc, 30)[0] == 1
    assert compare(a, a, auc, 30)[0] == 0.5
    assert compare(a, a, ks, 30, streams=(0, 0))[1].max() == 0
    assert compare(a, b, ks, 30)[0] == compare(b, a, ks, 30)[0]
    # Among fewer than a hundred, not one may be wrong.
    assert compare(a, b, tpr, 30)[0] == np.mean(a > b.max())
    for statistic in (auc, tpr, ks):
        assert (compare(a, b, statistic, 30)[1] == compare(8 * a, 8 * b, statistic, 30)[1]).all()


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_fluency_of_any_text(text: str) -> None:
    words = text.split()
    repeated, thrice = repetition(words), repetition(words * 3)
    if repeated is None or thrice is None:
        assert not words
        return
    assert 0 <= repeated < 1
    # No n-gram can surprise more than if all were different.
    assert 0 <= entropy(words) <= math.log2(max(1, len(words))) + 1e-9
    assert thrice >= repeated
