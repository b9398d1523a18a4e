"""A value with its 95% interval: the percentile bootstrap (Efron 1979), which draws rows anew with replacement.

It is seeded: the same rows give the same interval. It goes block by block, so that memory does not grow with the rows.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from core.report.schema import Measured

Floats = NDArray[np.float64]
Statistic = Callable[[Sequence[Floats]], Floats]

_SEED = 20240418
_ENDS = (0.025, 0.975)
_BLOCK = 1 << 15  # row numbers held at a time: what a cache of a processor holds


def measure(values: Floats, resamples: int) -> Measured:
    """The mean of `values`, (rows,), of which there is at least one."""
    return measure_means([values[None]], lambda samples: samples[0][0], resamples)


def measure_means(samples: Sequence[Floats], statistic: Statistic, resamples: int) -> Measured:
    """A statistic of the column means of samples that are drawn anew each for itself.

    A sample is (columns, rows). `statistic` is given the means of every sample, (columns, draws), and returns (draws,).
    """
    value = statistic([sample.mean(axis=1, keepdims=True) for sample in samples])
    drawn = statistic([_means(sample, resamples, stream) for stream, sample in enumerate(samples)])
    smallest = min(sample.shape[1] for sample in samples)
    return with_interval(float(value[0]), sum(sample.shape[1] for sample in samples), drawn, smallest)


def draws(rows: int, resamples: int, *, block: int, stream: int = 0) -> Iterator[NDArray[np.int64]]:
    """Row numbers drawn with replacement, (at most `block`, rows) at a time, `resamples` in all.

    Samples of as many rows share the draws of a stream; other streams, and other numbers of rows, have their own.
    """
    rng = np.random.default_rng([_SEED, stream, rows])
    for at in range(0, resamples, block):
        yield rng.integers(0, rows, (min(block, resamples - at), rows))


def block_of(rows: int) -> int:
    """How many draws of so many rows are held at a time."""
    return max(1, _BLOCK // rows)


def with_interval(value: float, rows: int, drawn: Floats, smallest: int | None = None) -> Measured:
    """The value with the interval that the resampled ones, (draws,), span; no ends where those are not settled, nor of
    a sample of one row, which is always drawn as it is. `smallest`: rows of the smallest sample, where there are more.
    """
    if (rows if smallest is None else smallest) < 2:
        return Measured(value=value, rows=rows, low=None, high=None)
    # A draw in which the statistic has no value could have had any: it counts as beyond both ends.
    exists = np.isfinite(drawn)
    low = float(np.quantile(np.where(exists, drawn, -np.inf), _ENDS[0], method="lower"))
    high = float(np.quantile(np.where(exists, drawn, np.inf), _ENDS[1], method="higher"))
    if not np.isfinite([low, high]).all():
        return Measured(value=value, rows=rows, low=None, high=None)
    # Resampled values can miss the value itself; an interval always holds its value.
    return Measured(value=value, rows=rows, low=min(low, value), high=max(high, value))


def _means(sample: Floats, resamples: int, stream: int) -> Floats:
    """Column means of `resamples` draws of a sample, (columns, rows): (columns, draws)."""
    rows = sample.shape[1]
    parts = [
        np.stack([column[drawn].mean(axis=1) for column in sample])
        for drawn in draws(rows, resamples, block=block_of(rows), stream=stream)
    ]
    return np.concatenate(parts, axis=1)
