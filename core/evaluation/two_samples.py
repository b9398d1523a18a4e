"""Statistics of two samples that only ask which score is larger: AUC, TPR at 1% FPR, the Kolmogorov-Smirnov distance.

Scores are grouped by value once, in ascending order; a resample is then two rows of counts, with nothing to sort.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from core.evaluation.stats import Floats, block_of, draws

Counts = NDArray[np.int64]  # (draws, groups): how many scores of a sample have each value
Comparison = Callable[[Counts, Counts], Floats]  # -> (draws,)

# A false-positive rate of 1% is one in so many: among fewer, it is a rate of none.
ONE_IN = 100


def auc(members: Counts, others: Counts) -> Floats:
    """Chance that a member's score is above another's, ties counting half (Mann-Whitney U / nm): (draws,)."""
    below = others.cumsum(axis=1) - others
    # Twice U, as whole numbers: equal samples give exactly 0.5.
    wins = (members * (2 * below + others)).sum(axis=1)
    return np.asarray(wins / (2 * members.sum(axis=1) * others.sum(axis=1)))


def tpr(members: Counts, others: Counts) -> Floats:
    """Largest share of members above a threshold that at most 1% of the others exceed: (draws,)."""
    total = others.sum(axis=1, keepdims=True)
    beyond = total - others.cumsum(axis=1)
    threshold = np.argmax(beyond <= total // ONE_IN, axis=1)
    up_to = np.take_along_axis(members.cumsum(axis=1), threshold[:, None], axis=1)[:, 0]
    all_of_them = members.sum(axis=1)
    return np.asarray((all_of_them - up_to) / all_of_them)


def ks(first: Counts, second: Counts) -> Floats:
    """Largest distance between the two distribution functions: (draws,)."""
    shares = [counts.cumsum(axis=1) / counts.sum(axis=1, keepdims=True) for counts in (first, second)]
    return np.asarray(np.abs(shares[0] - shares[1]).max(axis=1))


def compare(
    first: Floats, second: Floats, statistic: Comparison, resamples: int, streams: tuple[int, int] = (0, 1)
) -> tuple[float, Floats]:
    """The statistic of two samples of finite scores, and of `resamples` draws of them: value, (draws,).

    With the same stream twice, samples of as many rows are drawn together, row for row.
    """
    _, group = np.unique(np.concatenate([first, second]), return_inverse=True)
    mine, other = group[: len(first)], group[len(first) :]
    groups = int(group.max()) + 1
    block = block_of(len(group))
    together = zip(
        draws(len(mine), resamples, block=block, stream=streams[0]),
        draws(len(other), resamples, block=block, stream=streams[1]),
        strict=True,
    )
    drawn = [statistic(_counts(mine[a], groups), _counts(other[b], groups)) for a, b in together]
    return float(statistic(_counts(mine[None], groups), _counts(other[None], groups))[0]), np.concatenate(drawn)


def _counts(group: Counts, groups: int) -> Counts:
    """How often each group occurs in each draw, (draws, rows): (draws, groups)."""
    base = groups * np.arange(len(group))[:, None]
    return np.bincount((group + base).ravel(), minlength=groups * len(group)).reshape(len(group), groups)
