"""How much of a passage comes back from its first tokens: ROUGE-L of each continuation, and BLEU of all together.

BLEU is the corpus score (Papineni et al. 2002), from 0 to 1, as sacrebleu computes it with exponential smoothing (Chen
and Cherry 2014).
"""

from collections.abc import Sequence

import numpy as np

from core.evaluation.per_row import PerRow
from core.evaluation.rows import RowScore
from core.evaluation.stats import Floats, measure_means
from core.report.schema import Absent, Measurement

_ORDERS = 4


def _missing(length: int) -> str:
    return f"no passage is long enough to be continued after {length} tokens"


def rouge_l(length: int) -> PerRow:
    """Mean ROUGE-L recall of the continuations after `length` tokens."""
    # However few passages are so long: a short one has nothing to be asked for.
    return PerRow(lambda row: row.continued.get(f"rouge_l_{length}"), _missing(length), share=0.0)


def bleu(rows: Sequence[RowScore], length: int, resamples: int) -> Measurement:
    """BLEU, 0 to 1, of all continuations after `length` tokens; resampled by row."""
    counts = [row.bleu[str(length)] for row in rows if str(length) in row.bleu]
    if not counts:
        return Absent(absent=_missing(length) if rows else "no rows")
    sample = np.array(counts, dtype=np.float64).T
    return measure_means([sample], lambda means: corpus_bleu(means[0] * len(counts)), resamples)


def corpus_bleu(sums: Floats) -> Floats:
    """From sums over texts, (10, draws) of 4 matches, 4 totals, system and reference length, to (draws,)."""
    right, total, (system, wanted) = sums[:_ORDERS], sums[_ORDERS : 2 * _ORDERS], sums[2 * _ORDERS :]
    # Smoothing: the n-th order without a match counts as 1/2^n of one.
    none = right == 0
    matches = np.where(none, 0.5 ** none.cumsum(axis=0), right)
    # Texts too short for an order have no score, and neither have those without a single match.
    exists = (total > 0).all(axis=0) & (right > 0).any(axis=0)
    precision = np.exp(np.log(matches / np.where(total > 0, total, 1)).mean(axis=0))
    brevity = np.exp(np.minimum(0.0, 1 - wanted / np.where(system > 0, system, 1)))
    return np.where(exists, brevity * precision, 0.0)
