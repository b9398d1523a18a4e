"""A metric's value with its 95% bootstrap interval over rows. The resampling is seeded: same rows, same interval."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.report.schema import Absent, Measured, Measurement

_SEED = 20240418
_BLOCK = 1 << 22


def measure(values: Sequence[float], missing: str, resamples: int) -> Measurement:
    """Mean of one number a row. `missing` is the reason given where there is no row at all."""
    if not values:
        return Absent(absent=missing)
    v = np.asarray(values, dtype=np.float64)
    return _measured(float(v.mean()), len(v), _resampled(v[:, None], resamples)[:, 0])


def measure_ratio(nll: Sequence[float], tokens: Sequence[int], resamples: int) -> Measurement:
    """Perplexity: `exp(sum nll / sum tokens)`, resampled by row."""
    if not nll:
        return Absent(absent="no rows")
    pairs = np.column_stack([np.asarray(nll, dtype=np.float64), np.asarray(tokens, dtype=np.float64)])
    means = _resampled(pairs, resamples)
    with np.errstate(over="ignore"):
        value, draws = math.exp(min(700.0, pairs[:, 0].sum() / pairs[:, 1].sum())), np.exp(means[:, 0] / means[:, 1])
    return _measured(value, len(nll), np.minimum(draws, math.exp(700.0)))


def _resampled(columns: NDArray[np.float64], resamples: int) -> NDArray[np.float64]:
    """Column means of `resamples` draws with replacement: (resamples, columns)."""
    rng = np.random.default_rng(_SEED)
    rows = len(columns)
    block = max(1, _BLOCK // rows)
    parts = [
        columns[rng.integers(0, rows, (min(block, resamples - at), rows))].mean(axis=1)
        for at in range(0, resamples, block)
    ]
    return np.concatenate(parts)


def _measured(value: float, rows: int, draws: NDArray[np.float64]) -> Measured:
    low, high = np.quantile(draws, [0.025, 0.975])
    # Resampled means can miss the value itself by rounding; an interval always holds its value.
    return Measured(value=value, rows=rows, low=min(float(low), value), high=max(float(high), value))
