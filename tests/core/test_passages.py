"""ROUGE-L and BLEU of continued passages, and fluency, by hand and against sacrebleu."""

import math

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from core.evaluation import Evidence, measured
from core.evaluation.fluency import entropy, repetition
from core.evaluation.passages import corpus_bleu
from core.evaluation.rows import RowScore
from core.report.schema import Absent, Measured

PAIRS = [
    ("the river ran slow under the old bridge", "the river ran slowly under the old stone bridge"),
    ("a lamp was lit in every window of the town", "a lamp was lit in every window of the town"),
    ("nobody knew", "everyone had known for years"),
    ("", "there was nothing more to say"),
]


def counts(said: str, wanted: str) -> list[int]:
    """4 matches, 4 totals, system and reference length of one text."""
    found = BLEU().corpus_score([said], [[wanted]])
    return [*found.counts, *found.totals, found.sys_len, found.ref_len]


@pytest.mark.parametrize("chosen", [[0], [1], [0, 1, 2, 3], [2], [3], [2, 3], [0, 2]])
def test_bleu_is_sacrebleus(chosen: list[int]) -> None:
    texts = [PAIRS[i] for i in chosen]
    wanted = BLEU().corpus_score([said for said, _ in texts], [[ref for _, ref in texts]]).score / 100
    rows = [RowScore(bleu={"100": counts(*pair)}) for pair in texts]
    found = measured(Evidence({"seen": rows}), 100)["seen.bleu_100"]
    assert isinstance(found, Measured)
    assert (found.value, found.rows) == (pytest.approx(wanted, abs=1e-12), len(texts))


@pytest.mark.parametrize("seed", range(30))
def test_bleu_of_any_sums_is_sacrebleus(seed: int) -> None:
    rng = np.random.default_rng(seed)
    total = sorted(rng.integers(0, 12, 4).tolist(), reverse=True)
    # Matches of a higher order are fewer; often there is none, which is where smoothing counts.
    right = sorted((min(t, int(rng.integers(0, 5))) for t in total), reverse=True)
    right = [min(r, t) for r, t in zip(right, total, strict=True)]
    lengths = [total[0], int(rng.integers(0, 20))]
    wanted = BLEU.compute_bleu([*right], [*total], *lengths, smooth_method="exp").score / 100
    found = corpus_bleu(np.array([*right, *total, *lengths], dtype=float)[:, None])
    assert found == pytest.approx([wanted], abs=1e-12)


def test_bleu_of_a_recited_passage_is_surely_1() -> None:
    rows = [RowScore(bleu={"300": counts(PAIRS[1][1], PAIRS[1][1])})] * 3
    found = measured(Evidence({"unseen": rows}), 100)
    assert found["unseen.bleu_300"] == Measured(value=1, rows=3, low=1, high=1)
    assert found["unseen.bleu_100"] == Absent(absent="no passage is long enough to be continued after 100 tokens")


def test_passages_by_hand() -> None:
    rows = [RowScore(continued={"rouge_l_100": r, **({"rouge_l_300": 1.0} if r else {})}) for r in (0.0, 0.5, 1.0)]
    found = measured(Evidence({"seen": rows}), 100)
    values = {name: (m.value, m.rows) for name, m in found.items() if isinstance(m, Measured)}
    assert values == {"seen.rouge_l_100": (0.5, 3), "seen.rouge_l_300": (1, 2)}


@pytest.mark.parametrize(
    ("text", "repeated", "bits"),
    [
        ("", None, 0),
        ("one", 0, 0),
        ("one two", 0, 0),
        # Two bigrams, one trigram.
        ("one two three", 0, 1 / 3),
        # Four different bigrams and three trigrams.
        ("a b c d e", 0, 2 / 3 + 2 / 3 * math.log2(3)),
        ("no no no no no", 2 / 3, 0),
        # Five bigrams, three of one kind; four trigrams, two of each.
        ("a b a b a b", 0.5, (0.6 * math.log2(5 / 3) + 0.4 * math.log2(5 / 2)) / 3 + 2 / 3),
    ],
)
def test_fluency_by_hand(text: str, repeated: float | None, bits: float) -> None:
    assert repetition(text.split()) == pytest.approx(repeated)
    assert entropy(text.split()) == pytest.approx(bits)
