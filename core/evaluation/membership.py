"""Membership inference: is the forget set still told from text never seen, by a score a row that members have higher?

Every score is over answer tokens without the end of sequence, and has its sign turned where members have less of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from core.evaluation.evidence import Evidence, Rows
from core.evaluation.rows import Numbers, RowScore
from core.evaluation.stats import Floats, with_interval
from core.evaluation.two_samples import ONE_IN, auc, compare, tpr
from core.report.schema import Absent, Measurement
from core.spec.metrics import MIN_K_PERCENT

PLUS_PLUS_PERCENT = 40
# Below this the spread of a prediction is rounding of single precision.
_SMALLEST_STD = 1e-6


@dataclass(frozen=True)
class Score:
    """`value` is a row's score, or None where it has none; `takes` says what a row needs for it."""

    value: Callable[[RowScore], float | None]
    takes: str

    def of(self, rows: Sequence[RowScore]) -> Floats:
        """The scores that are numbers: at most (rows,)."""
        found = [value for value in map(self.value, rows) if value is not None]
        scores = np.array(found, dtype=np.float64)
        return scores[np.isfinite(scores)]


def loss(row: RowScore) -> float | None:
    """Mean log-probability (arXiv:1709.01604)."""
    p = _tokens(row, row.log_probs)
    return None if p is None else float(p.mean())


def zlib(row: RowScore) -> float | None:
    """Sum of the log-probabilities over the length of the compressed answer, in bytes (arXiv:2012.07805)."""
    p = _tokens(row, row.log_probs)
    return None if p is None or not row.zlib_bytes else float(p.sum()) / row.zlib_bytes


def min_k(percent: int) -> Callable[[RowScore], float | None]:
    """Mean of the lowest `percent`% of the log-probabilities, of one at least (arXiv:2310.16789)."""

    def value(row: RowScore) -> float | None:
        p = _tokens(row, row.log_probs)
        return None if p is None else _mean_of_lowest(p, percent)

    return value


def min_k_plus_plus(row: RowScore) -> float | None:
    """The same of `(log p - mean) / std`, both over the model's own prediction there (arXiv:2404.02936)."""
    p, mean, std = (_tokens(row, numbers) for numbers in (row.log_probs, row.mean_log_p, row.std_log_p))
    if p is None or mean is None or std is None:
        return None
    return _mean_of_lowest((p - mean) / np.maximum(std, _SMALLEST_STD), PLUS_PLUS_PERCENT)


def reference(row: RowScore) -> float | None:
    """The reference model's loss less this one's, token means (arXiv:2012.07805)."""
    own = loss(row)
    return None if own is None or row.reference_loss is None else own + row.reference_loss


def grad_norm(row: RowScore) -> float | None:
    """The gradient's norm, its sign turned: what was learned pulls less (arXiv:2402.17012)."""
    return None if row.grad_norm is None else -row.grad_norm


_PROBABILITIES = "log-probabilities of answer tokens"
SCORES: dict[str, Score] = {
    "loss": Score(loss, _PROBABILITIES),
    "zlib": Score(zlib, f"{_PROBABILITIES} and the length of its compressed text, which membership 'zlib' asks for"),
    **{
        "min_k" if percent == 40 else f"min_k_{percent}": Score(min_k(percent), _PROBABILITIES)
        for percent in MIN_K_PERCENT
    },
    "min_k_plus_plus": Score(
        min_k_plus_plus, f"{_PROBABILITIES} with their mean and spread, which membership 'min_k_plus_plus' asks for"
    ),
    "reference": Score(reference, "a loss under evaluation.reference, which membership 'reference' asks for"),
    "grad_norm": Score(grad_norm, "a gradient's norm, which membership 'grad_norm' asks for"),
}
_COMPARISONS = {"auc": auc, "tpr": tpr}


@dataclass(frozen=True)
class Separation:
    """How far a score sets forget apart from holdout: `what` is auc or tpr. Rows of both sets are counted."""

    score: str
    what: str

    def __call__(self, evidence: Evidence, resamples: int) -> Measurement:
        """The measurement; absent where a set has no such score, or too few for the rate asked."""
        found = compared(SCORES[self.score], evidence.rows)
        if isinstance(found, Absent):
            return found
        forget, holdout = found
        if self.what == "tpr" and len(holdout) < ONE_IN:
            least = f"a false-positive rate of 1% takes at least {ONE_IN} holdout rows"
            return Absent(absent=f"{least}, and {len(holdout)} can be counted")
        value, drawn = compare(forget, holdout, _COMPARISONS[self.what], resamples)
        return with_interval(value, len(forget) + len(holdout), drawn, min(len(forget), len(holdout)))


def compared(score: Score, rows: Rows) -> tuple[Floats, Floats] | Absent:
    """The score on forget and on holdout; absent, with the set at fault, where one has none."""
    splits = ("forget", "holdout")
    for split in splits:
        if not rows.get(split):
            return Absent(absent=f"no {split} rows")
    forget, holdout = (score.of(rows[split]) for split in splits)
    for split, scores in zip(splits, (forget, holdout), strict=True):
        if not len(scores):
            return Absent(absent=f"no {split} row has {score.takes}")
    return forget, holdout


def _tokens(row: RowScore, numbers: Numbers) -> Floats | None:
    """The entries of answer tokens, without that of the end of sequence; None where there is none."""
    if not 0 < row.counted <= len(numbers):
        return None
    return np.asarray(numbers[: row.counted], dtype=np.float64)


def _mean_of_lowest(values: Floats, percent: int) -> float:
    lowest = max(1, len(values) * percent // 100)
    return float(np.partition(values, lowest - 1)[:lowest].mean())
