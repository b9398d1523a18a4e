"""How firmly the model holds an answer: its probability, its perplexity, and how much of it argmax would write."""

import math
from collections.abc import Sequence

import numpy as np

from core.evaluation.rows import RowScore
from core.evaluation.stats import measure_means
from core.report.schema import Absent, Measured, Measurement

# exp of more than this overflows a double.
_LARGEST = 709.0


def answer_loss(row: RowScore) -> float | None:
    """Token mean of the true answer's loss, in nats, end of sequence included; None where it is no number."""
    return row.nll / row.tokens if row.tokens and math.isfinite(row.nll) else None


def probability(row: RowScore) -> float | None:
    """`exp(-S/|y|)`, end of sequence included (arXiv:2401.06121)."""
    loss = answer_loss(row)
    # A loss of rounding's size below 0 is one of 0.
    return None if loss is None else math.exp(-max(0.0, loss))


def choice(row: RowScore) -> float | None:
    """`P(answer) / (P(answer) + sum_k P(perturbed_k))`, each `P = exp(-loss)` a token (arXiv:2401.06121)."""
    loss = answer_loss(row)
    if loss is None or not row.perturbed_losses or not all(map(math.isfinite, row.perturbed_losses)):
        return None
    # The likeliest of them is given 1, so that not all can underflow.
    least = min(loss, *row.perturbed_losses)
    return math.exp(least - loss) / sum(math.exp(least - other) for other in (loss, *row.perturbed_losses))


def exact_memorization(row: RowScore) -> float | None:
    """Share of answer tokens where teacher-forced argmax is right, end of sequence not counted (arXiv:2202.07646)."""
    return row.right / row.counted if _has_hits(row) else None


def extraction_strength(row: RowScore) -> float | None:
    """`1 - k/|y|`: k is the smallest index from which argmax is right to the end, |y| where even the last token is
    wrong, end of sequence not counted (arXiv:2407.16831)."""
    if not _has_hits(row):
        return None
    wrong = np.flatnonzero(~row.hits[: row.counted])
    k = int(wrong[-1]) + 1 if len(wrong) else 0
    return (row.counted - k) / row.counted


def perplexity(rows: Sequence[RowScore], resamples: int) -> Measurement:
    """`exp(sum S / sum |y|)` over all rows, resampled by row."""
    kept = [row for row in rows if answer_loss(row) is not None]
    if not kept:
        return Absent(absent="no row has an answer whose loss is a number" if rows else "no rows")
    pairs = np.array([[row.nll for row in kept], [row.tokens for row in kept]], dtype=np.float64)
    loss = measure_means([pairs], lambda samples: np.maximum(samples[0][0] / samples[0][1], 0.0), resamples)
    ends = (loss.value, loss.low, loss.high)
    value, low, high = (math.exp(end) if end is not None and end < _LARGEST else None for end in ends)
    if value is not None and loss.high is None:
        return Measured(value=value, rows=len(kept), low=None, high=None)
    if value is None or low is None or high is None:
        worst = loss.value if loss.high is None else loss.high
        return Absent(absent=f"the loss is {loss.value:.6g} nats a token, or {worst:.6g}: no float holds its exp")
    return Measured(value=value, rows=len(kept), low=low, high=high)


def _has_hits(row: RowScore) -> bool:
    return 0 < row.counted <= len(row.hits)
