"""Whether two ways of scoring gave the same numbers, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.evaluation.rows import RowScore

TOLERANCE = 1e-4
_NUMBERS = (
    "nll",
    "log_probs",
    "mean_log_p",
    "std_log_p",
    "paraphrase_loss",
    "perturbed_losses",
    "rouge_l",
    "rouge_l_f1",
)
_EXACT = ("tokens", "ends", "zlib_bytes")


@dataclass(frozen=True)
class Agreement:
    """The largest difference of a number, relative to its size where that is above 1, and the field it is of; how many
    answer tokens are argmax to one way alone, and how many greedy texts differ."""

    difference: float
    field: str
    tokens: int
    texts: int

    @property
    def holds(self) -> bool:
        """Whether the two agree."""
        return self.difference <= TOLERANCE and not self.tokens and not self.texts


def compare(ours: Sequence[RowScore], theirs: Sequence[RowScore]) -> Agreement:
    """How far our rows are from theirs in everything that they measured; what we lack of that differs infinitely."""
    gaps = {"rows": 0.0 if len(ours) == len(theirs) else np.inf}
    tokens = texts = 0
    for our, their in zip(ours, theirs, strict=False):
        for name in _NUMBERS:
            gaps[name] = max(gaps.get(name, 0.0), _gap(getattr(our, name), getattr(their, name)))
        for name in _EXACT:
            other = getattr(their, name)
            gaps[name] = max(gaps.get(name, 0.0), 0.0 if other is None or getattr(our, name) == other else np.inf)
        if len(their.hits):
            tokens += int((our.hits != their.hits).sum()) if len(our.hits) == len(their.hits) else len(their.hits)
        texts += our.generated != their.generated
    worst = max(gaps, key=lambda name: gaps[name])
    return Agreement(float(gaps[worst]), worst, tokens, texts)


def _gap(ours: Any, theirs: Any) -> float:
    if theirs is None or np.size(theirs) == 0:
        return 0.0
    if ours is None or np.shape(ours) != np.shape(theirs):
        return np.inf
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    gap = float((np.abs(a - b) / np.maximum(1.0, np.abs(b))).max())
    return np.inf if np.isnan(gap) else gap
