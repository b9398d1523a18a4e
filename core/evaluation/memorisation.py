"""How firmly the model holds an answer: its probability, and the share of its tokens it would itself have written."""

import math

from core.evaluation.score import RowScore


def probability(row: RowScore) -> float:
    """`exp(-S/|y|)`, end of sequence included (arXiv:2401.06121)."""
    return math.exp(-row.nll / row.tokens)


def exact_memorization(row: RowScore) -> float | None:
    """Share of answer tokens where teacher-forced argmax is right, end of sequence not counted."""
    return row.right / row.counted if row.counted else None
