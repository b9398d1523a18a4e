"""Each metric of a set on rows computed by hand, what is absent and why, and the interval."""

import math
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from core.evaluation import METRICS, Evidence, measured, of_attack
from core.evaluation.memorisation import choice, extraction_strength
from core.evaluation.rows import RowScore
from core.evaluation.stats import measure, measure_means, with_interval
from core.report.schema import Absent, Measured
from core.spec.attacks import ATTACK_LABELS
from core.spec.metrics import METRICS as NAMED
from core.spec.metrics import OF_ATTACKS
from tests.core.scored import scored

ROOT = Path(__file__).parents[2]
ROWS = [
    # probability exp(-0.5); two of three tokens right, the last one after a wrong one; r = exp(0.2 - 1.2)
    scored(
        [-0.5, -0.75, -0.25, -0.5],
        [1, 0, 1, 0],
        ends=True,
        paraphrase_loss=0.2,
        perturbed_losses=[1.0, 1.4],
        rouge_l=0.25,
        rouge_l_f1=0.4,
        nearest=True,
        repetition=0.5,
        entropy=3.0,
    ),
    # probability exp(-2); none of one right; r = exp(3 - 1)
    scored(
        [-3.0, -1.0],
        [0, 1],
        ends=True,
        paraphrase_loss=3.0,
        perturbed_losses=[1.0],
        rouge_l=1.0,
        rouge_l_f1=0.6,
        nearest=False,
        repetition=0.0,
        entropy=2.0,
    ),
    # a text: nothing to generate from, nothing to compare with; one of one right
    scored([0.0], [1]),
    # an answer of an end of sequence alone; perturbations without a paraphrase
    scored([-1.0], [1], ends=True, perturbed_losses=[2.0], rouge_l=0.0, rouge_l_f1=0.0, repetition=0.0, entropy=0.0),
]
PROBABILITY = (math.exp(-0.5) + math.exp(-2) + 1 + math.exp(-1)) / 4
SHARED = {
    "probability": (PROBABILITY, 4),
    "rouge_l": (1.25 / 3, 3),
    "rouge_l_f1": (1.0 / 3, 3),
    "exact_memorization": ((2 / 3 + 0 + 1) / 3, 3),
    "extraction_strength": ((1 / 3 + 0 + 1) / 3, 3),
}
NEAREST = {"embedding_accuracy": (0.5, 2)}
PERPLEXITY = {"perplexity": (math.exp(7 / 8), 4)}
FACTS = {
    "rouge_l": SHARED["rouge_l"],
    **NEAREST,
    # exp(-0.5) against exp(-1) and exp(-1.4), exp(-2) against exp(-1), exp(-1) against exp(-2)
    "probability": (
        (
            math.exp(-0.5) / (math.exp(-0.5) + math.exp(-1) + math.exp(-1.4))
            + math.exp(-2) / (math.exp(-2) + math.exp(-1))
            + math.exp(-1) / (math.exp(-1) + math.exp(-2))
        )
        / 3,
        3,
    ),
    # r of the answer itself: exp(0.5 - 1.2), exp(2 - 1), exp(1 - 2)
    "truth_ratio": ((1 - math.exp(-0.7) + 0 + 1 - math.exp(-1)) / 3, 3),
}
BY_HAND = {
    "forget": {
        **SHARED,
        **NEAREST,
        "truth_ratio": ((math.exp(-1) + math.exp(-2)) / 2, 2),  # min(r, 1/r)
        "repetition": (0.5 / 3, 3),
        "entropy": (5 / 3, 3),
    },
    # max(0, 1 - r)
    "retain": {**SHARED, **NEAREST, **PERPLEXITY, "truth_ratio": ((1 - math.exp(-1) + 0) / 2, 2)},
    "holdout": {**SHARED, **PERPLEXITY},
    "real_authors": FACTS,
    "world_facts": FACTS,
    **{name: {what: SHARED[what] for what in ("rouge_l", "rouge_l_f1")} for name in ("verbatim", "knowledge")},
    "retain_knowledge": {what: SHARED[what] for what in ("rouge_l", "rouge_l_f1")},
    "text": PERPLEXITY,
}


@pytest.mark.parametrize("split", BY_HAND)
def test_values_by_hand(split: str) -> None:
    found = {name: m for name, m in measured(Evidence({split: ROWS}), 100).items() if not name.startswith("tofu")}
    assert found.keys() == {f"{split}.{name}" for name in BY_HAND[split]}
    for name, (value, rows) in BY_HAND[split].items():
        m = found[f"{split}.{name}"]
        assert isinstance(m, Measured), name
        assert (m.value, m.rows) == (pytest.approx(value), rows), name


def test_toxic_is_what_the_classifier_scores_over_a_half() -> None:
    rows = [RowScore(toxicity=t) for t in (0.5, 0.51, 0.1, 0.9)] + [RowScore()]
    for split in ("harm_prompts", "toxic_prompts"):
        found = measured(Evidence({split: rows}), 100)
        m = found.pop(f"{split}.toxic")
        assert isinstance(m, Measured)
        assert (m.value, m.rows, found) == (0.5, 4, {})


def test_a_gate_can_speak_of_exactly_what_is_measured() -> None:
    attacks = [f"{label}.{name}" for label in ATTACK_LABELS for name in OF_ATTACKS]
    # In the table's order, too: a report reads like the catalogue.
    assert [*METRICS, *attacks] == list(NAMED)
    everything = measured(Evidence({split: ROWS for m in NAMED.values() for split in m.sets}), 100)
    assert list(everything) == list(METRICS)


def test_an_attack_has_the_forget_sets_own_metrics() -> None:
    found, own = of_attack(ROWS, 100), measured(Evidence({"forget": ROWS}), 100)
    assert found == {name: own[f"forget.{name}"] for name in OF_ATTACKS}


def test_metrics_of_sets_that_were_not_given_are_left_out() -> None:
    assert measured(Evidence({}), 100) == {}
    found = measured(Evidence({"forget": ROWS, "text": []}), 100)
    assert {name.split(".")[0] for name in found} == {"forget", "text", "tofu"}
    assert "tofu.model_utility" not in found
    # A set that was given and is empty is told of.
    assert found["text.perplexity"] == Absent(absent="no rows")


def test_what_cannot_be_measured_says_why() -> None:
    texts = [RowScore(nll=1.0, tokens=3)]
    found = measured(Evidence({"forget": texts, "real_authors": texts}), 100)
    why = {name: m.absent for name, m in found.items() if isinstance(m, Absent)}
    assert found.keys() - why.keys() == {"forget.probability"}
    assert "both a paraphrased and a perturbed answer" in why["forget.truth_ratio"]
    assert "perturbed answers" in why["real_authors.probability"]
    assert "no row has a prompt" in why["forget.rouge_l"]
    # Scores that were never kept are no wrong argmax.
    assert "no row has an answer token" in why["forget.exact_memorization"]
    assert "evaluation.retrained" in why["tofu.forget_quality"]
    assert all(m == Absent(absent="no rows") for m in measured(Evidence({"retain": []}), 100).values())


def test_what_was_asked_for_and_is_not_there_is_told_by_its_field() -> None:
    missing = {field: f"{field} could not be read" for field in ("embedder", "classifier", "retrained", "reference")}
    missing["membership"] = "grad_norm was not asked for"
    rows = {split: [scored([-1.0], [1])] for m in NAMED.values() for split in m.sets}
    found = measured(Evidence(rows, missing=missing), 100)
    for name, m in found.items():
        for need in NAMED[name].needs:
            assert m == Absent(absent=missing[need])
    # What is there all the same is measured.
    judged = Evidence({"harm_prompts": [RowScore(toxicity=0.9)]}, missing=missing)
    assert isinstance(measured(judged, 100)["harm_prompts.toxic"], Measured)


@pytest.mark.parametrize(
    ("hits", "ends", "strength"),
    [
        ([1, 1, 1, 1], False, 1),
        ([1, 1, 1, 0], False, 0),
        ([0, 1, 1, 1], False, 0.75),
        ([1, 0, 1, 0, 1], False, 0.2),
        ([0], False, 0),
        ([1], False, 1),
        # The end of sequence is no answer token, whether it is right or wrong.
        ([0, 1, 0], True, 0.5),
        ([1, 0, 1], True, 0),
        ([1], True, None),
        ([], False, None),
    ],
)
def test_extraction_strength(hits: list[int], ends: bool, strength: float | None) -> None:
    assert extraction_strength(scored([-1.0] * len(hits), hits, ends)) == strength


def test_a_choice_between_impossible_answers_is_still_one() -> None:
    def between(loss: float, *others: float) -> float | None:
        return choice(RowScore(nll=loss, tokens=1, perturbed_losses=list(others)))

    assert between(1e6, 1e6) == 0.5
    assert between(1e6, 0.0) == 0
    assert between(0.0, 1e6, 1e6) == 1
    assert between(1e6 + 1, 1e6) == pytest.approx(1 / (1 + math.e))
    assert between(1.0) is None


def test_far_from_one_the_truth_ratio_stays_a_number() -> None:
    hopeless = RowScore(nll=1, tokens=1, paraphrase_loss=1e5, perturbed_losses=[0.0])
    sure = RowScore(nll=1, tokens=1, paraphrase_loss=0.0, perturbed_losses=[1e5])
    for row, kept in ((hopeless, 0), (sure, 1)):
        found = measured(Evidence({"forget": [row], "retain": [row]}), 100)
        values = [m.value for name, m in found.items() if "truth_ratio" in name and isinstance(m, Measured)]
        assert values == [0, kept]


def test_a_perplexity_that_no_float_holds_is_absent() -> None:
    def of(loss: float) -> object:
        return measured(Evidence({"text": [RowScore(nll=loss, tokens=1)]}), 100)["text.perplexity"]

    assert of(700.0) == Measured(value=math.exp(700), rows=1, low=None, high=None)
    assert isinstance(found := of(1e6), Absent)
    assert "1e+06 nats a token" in found.absent
    # The value could be told, but not how far up its interval reaches.
    mixed = [RowScore(nll=loss, tokens=1) for loss in (0.0, 1000.0)]
    assert isinstance(measured(Evidence({"text": mixed}), 100)["text.perplexity"], Absent)


def test_perplexity_is_resampled_by_row() -> None:
    rows = [RowScore(nll=2.0 * tokens, tokens=tokens) for tokens in (1, 2, 4)]
    same = measured(Evidence({"text": rows}), 200)["text.perplexity"]
    # Every row has the same loss a token, so no draw of rows can differ.
    assert same == Measured(value=math.exp(2), rows=3, low=math.exp(2), high=math.exp(2))


def test_rows_whose_loss_is_no_number_are_left_out() -> None:
    broken = [scored([value], [1], paraphrase_loss=value, perturbed_losses=[1.0]) for value in (math.nan, -math.inf)]
    rows = [*ROWS, *ROWS]
    alone, beside = (measured(Evidence({"retain": every}), 100) for every in (rows, rows + broken))
    for name in ("probability", "perplexity"):
        assert beside[f"retain.{name}"] == alone[f"retain.{name}"]
    assert isinstance(measured(Evidence({"retain": broken}), 100)["retain.probability"], Absent)
    few = measured(Evidence({"retain": [ROWS[0], *broken]}), 100)["retain.probability"]
    assert isinstance(few, Absent)
    assert few.absent.startswith("only 1 of 3 rows could be measured")


def test_the_interval_is_as_wide_as_the_normal_one_for_many_rows() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = measure(values, 4000)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(found.value - half, abs=0.15 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.15 * half)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    found = [measure(rng.exponential(1.0, 80), 200) for _ in range(200)]
    held = sum(m.low <= 1 <= m.high for m in found if m.low is not None and m.high is not None)
    assert 0.87 <= held / 200 <= 0.99


def test_samples_are_drawn_each_for_itself() -> None:
    sample = np.random.default_rng(3).normal(size=(1, 300))
    # Drawn together, the two means would differ by nothing; apart, the variances add up.
    apart = measure_means([sample, sample], lambda means: means[0][0] - means[1][0], 2000)
    assert apart.value == 0
    assert apart.high == pytest.approx(1.96 * math.sqrt(2 / 300), rel=0.15)


def test_draws_without_a_value_count_as_beyond_the_ends() -> None:
    drawn = np.arange(1000.0)
    drawn[500:510] = np.nan
    some = with_interval(400.0, 5, drawn)
    # With none, the ends are the 25th from either side; ten more lie beyond.
    assert (some.low, some.high) == (14, 985)
    drawn[500:530] = np.inf
    assert with_interval(400.0, 5, drawn) == Measured(value=400, rows=5, low=None, high=None)


def test_memory_does_not_grow_with_the_resamples() -> None:
    values = np.ones(50_000)
    tracemalloc.start()
    measure(values, 200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All row numbers at once would be 80 MB.
    assert peak < 10e6


def test_metrics_need_neither_torch_nor_a_model() -> None:
    script = "import sys, core.evaluation; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
