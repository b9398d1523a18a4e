"""Which rows an optimizer step sees: a function of seed, set and step alone, so a resumed run needs no position."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@lru_cache(maxsize=8)
def _order(seed: int, stream: int, epoch: int, rows: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.random.default_rng((seed, stream, epoch)).permutation(rows))


def rows_of_step(step: int, rows: int, batch_size: int, *, seed: int, stream: int) -> list[int]:
    """Row indices of one optimizer step: the set is walked in a new random order each pass, without a break between.

    `stream` keeps the orders of different sets apart.
    """
    first = step * batch_size
    return [_order(seed, stream, i // rows, rows)[i % rows] for i in range(first, first + batch_size)]


def by_length(items: Sequence[T], length: Callable[[T], int], token_budget: int) -> list[list[T]]:
    """Split items into batches of similar length, each of at most `token_budget` padded tokens (or one item)."""
    batches: list[list[T]] = []
    for item in sorted(items, key=length):
        # Sorted ascending: the item now added is the widest, and sets the padded width of its batch.
        if batches and (len(batches[-1]) + 1) * length(item) <= token_budget:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches
