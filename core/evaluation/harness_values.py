"""From what lm-evaluation-harness scored of each document to a value, which is lm-eval's own, and its 95% interval.

Means, perplexities and bits per byte are drawn anew as columns of numbers, all else through lm-eval's own function.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from core.evaluation.stats import Floats, Statistic, block_of, draws, measure_means, with_interval
from core.report.schema import Absent, Measured, Measurement

Aggregation = Callable[[Sequence[Any]], Any]

# lm-eval's functions of column means: of a number a document, or of a log-likelihood and a length.
_OF_MEANS: dict[str, Statistic] = {
    "mean": lambda samples: samples[0][0],
    "perplexity": lambda samples: np.exp(-samples[0][0]),
    "weighted_perplexity": lambda samples: np.exp(-samples[0][0] / samples[0][1]),
    "bits_per_byte": lambda samples: -samples[0][0] / samples[0][1] / math.log(2),
}


@dataclass(frozen=True)
class Documents:
    """What one metric of one task is made of: an entry a document, and lm-eval's function of all of them."""

    entries: Sequence[Any]
    aggregate: Aggregation

    @property
    def value(self) -> float:
        """lm-eval's own value. Raises ValueError, with the reason, where that is not one finite number."""
        return _number(self.aggregate, self.entries)

    @property
    def known(self) -> str | None:
        """The name of its function where that is one of column means."""
        name = getattr(self.aggregate, "__name__", "")
        own = getattr(self.aggregate, "__module__", "") == "lm_eval.api.metrics"
        return name if own and name in _OF_MEANS else None

    @property
    def columns(self) -> Floats | None:
        """The entries as (columns, rows); None where they are not numbers, or not equally many in each."""
        try:
            rows = np.array(self.entries, dtype=np.float64)
        except (TypeError, ValueError):
            return None
        return np.atleast_2d(rows.T) if rows.ndim in (1, 2) else None


def measured(documents: Documents, resamples: int) -> Measurement:
    """The value with its interval; no ends where a document's entry is more than numbers."""
    try:
        value = documents.value
    except ValueError as error:
        return Absent(absent=str(error))
    rows, columns = len(documents.entries), documents.columns
    with np.errstate(over="ignore"), warnings.catch_warnings():
        # Of a draw with one class alone, say.
        warnings.simplefilter("ignore")
        if documents.known and columns is not None:
            return _own(value, measure_means([columns], _OF_MEANS[documents.known], resamples))
        if all(map(_numeric, documents.entries)):
            return with_interval(value, rows, _drawn(documents, resamples))
    return Measured(value=value, rows=rows, low=None, high=None)


def averaged(value: float, tasks: Sequence[Documents], weights: Sequence[float], resamples: int) -> Measurement:
    """A group's value with its interval, over documents of each task drawn anew among themselves.

    No ends where it is not the mean, weighted so, of means over documents.
    """
    if not math.isfinite(value):
        return Absent(absent="a task of the group has no value")
    columns = [task.columns for task in tasks]
    samples = [found for found in columns if found is not None and len(found) == 1]
    rows = sum(len(task.entries) for task in tasks)
    if len(samples) == len(tasks) and all(task.known == "mean" for task in tasks):
        found = measure_means(samples, lambda means: sum_of(weights, [m[0] for m in means]), resamples)
        if math.isclose(found.value, value, rel_tol=1e-9, abs_tol=1e-12):
            return _own(value, found)
    return Measured(value=value, rows=rows, low=None, high=None)


def sum_of(weights: Sequence[float], values: Sequence[Floats]) -> Floats:
    """The weighted sum of equally long rows."""
    return np.asarray(weights, dtype=np.float64) @ np.stack(values)


def _own(value: float, found: Measured) -> Measured:
    """The interval that was found around lm-eval's own value, from which ours differs by rounding."""
    if found.low is None or found.high is None:
        return Measured(value=value, rows=found.rows, low=None, high=None)
    return Measured(value=value, rows=found.rows, low=min(found.low, value), high=max(found.high, value))


def _drawn(documents: Documents, resamples: int) -> Floats:
    """Values of documents drawn anew, (draws,); NaN where there is none."""
    rows, entries = len(documents.entries), documents.entries
    values = []
    for block in draws(rows, resamples, block=block_of(rows)):
        for chosen in block.tolist():
            try:
                values.append(_number(documents.aggregate, [entries[i] for i in chosen]))
            except ValueError:
                values.append(math.nan)
    return np.array(values, dtype=np.float64)


def _number(aggregate: Aggregation, entries: Sequence[Any]) -> float:
    """Raises ValueError where the function gives no finite number."""
    try:
        value = aggregate(entries)
    except OverflowError:
        raise ValueError("the value is too large for a number") from None
    except Exception as error:
        # What a task's own function says is of any type.
        raise ValueError(f"lm-eval's aggregation failed: {type(error).__name__}: {error}"[:300]) from None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"lm-eval gives no single number, but a {type(value).__name__}") from None
    if not math.isfinite(number):
        raise ValueError(f"the value is {number}")
    return number


def _numeric(entry: Any) -> bool:
    """Whether an entry is numbers alone, however nested."""
    if isinstance(entry, list | tuple):
        return all(map(_numeric, entry))
    return isinstance(entry, Real) or (isinstance(entry, np.ndarray) and entry.dtype.kind in "biuf")
