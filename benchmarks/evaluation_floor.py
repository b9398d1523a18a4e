"""The floor of an evaluation: the matrix products that no way of scoring can do without.

Every token is counted once for all that begins alike: prompts shared by a record's answers, answers that go the same
way for a while, and what the model writes where it repeats the true answer. What a way takes beyond this at the rate of
one large product is repetition, padding, small products, norms, softmax and overhead.
"""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from benchmarks.baselines import Row
from benchmarks.rows import Size

_WIDTH, _REPEATS = 2048, 3


@dataclass(frozen=True)
class Needed:
    """Positions that go through the layers, those that are predicted from, and the keys that attention looks at."""

    tokens: int
    predicted: int
    looked_at: int

    def __add__(self, other: "Needed") -> "Needed":
        return Needed(self.tokens + other.tokens, self.predicted + other.predicted, self.looked_at + other.looked_at)

    def flop(self, size: Size) -> int:
        """Floating-point operations of the products, each token's attention on what stands before it alone."""
        a_layer = 4 * size.hidden**2 + 3 * size.hidden * size.intermediate
        attention = 2 * size.hidden * self.looked_at
        return 2 * (size.layers * (self.tokens * a_layer + attention) + self.predicted * size.hidden * size.vocab)


def needed(rows: Iterable[Row]) -> Needed:
    """What these sequences need together; of each the last token is predicted, and never looked at."""
    places: dict[tuple[int, int], int] = {}
    depths: dict[int, int] = {}
    predicted = set()
    for row in rows:
        place = 0
        for depth, token in enumerate(row.ids[:-1], start=1):
            place = places.setdefault((place, token), len(places) + 1)
            depths[place] = depth
            if depth >= row.start:
                predicted.add(place)
    return Needed(len(depths), len(predicted), sum(depths.values()))


def matmul_rate(dtype: torch.dtype) -> float:
    """Billion floating-point operations a second of one large product, the median of a few."""
    x, y = (torch.randn(_WIDTH, _WIDTH).to(dtype) for _ in range(2))
    torch.mm(x, y)
    taken = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        torch.mm(x, y)
        taken.append(time.perf_counter() - began)
    return 2 * _WIDTH**3 / statistics.median(taken) / 1e9
