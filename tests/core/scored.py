"""Rows as scoring leaves them, from the few numbers that a test is about."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.evaluation.rows import RowScore


def scored(log_probs: Sequence[float], hits: Sequence[int] = (), ends: bool = False, **fields: Any) -> RowScore:
    """A row of these token log-probabilities, the last that of end of sequence where `ends`."""
    return RowScore(
        nll=-sum(log_probs),
        tokens=len(log_probs),
        ends=ends,
        log_probs=np.array(log_probs, dtype=np.float32),
        hits=np.array(hits, dtype=np.bool_),
        **fields,
    )


def each(scores: Sequence[float]) -> list[RowScore]:
    """One row of one token for each log-probability."""
    return [scored([score]) for score in scores]
