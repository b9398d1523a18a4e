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


def by_length(
    items: Sequence[T], length: Callable[[T], int], token_budget: int, *, packed: bool = False
) -> list[list[T]]:
    """Split items into batches of similar length, each of at most `token_budget` tokens (or one item).

    Padding counts as tokens unless the batches will be `packed`.
    """
    batches: list[list[T]] = []
    held = 0
    # Sorted ascending: the item now added is the widest, and sets the padded width of its batch.
    for item in sorted(items, key=length):
        held = held + length(item) if packed else (len(batches[-1]) + 1 if batches else 1) * length(item)
        if batches and held <= token_budget:
            batches[-1].append(item)
        else:
            batches.append([item])
            held = length(item)
    return batches


def dealt(items: Sequence[T], length: Callable[[T], int], shares: int) -> list[list[T]]:
    """Items divided into shares of about equal length, each item to one of them."""
    hands: list[list[T]] = [[] for _ in range(shares)]
    for turn, item in enumerate(sorted(items, key=length, reverse=True)):
        there, back = turn % shares, shares - 1 - turn % shares
        hands[there if turn // shares % 2 == 0 else back].append(item)
    return hands
