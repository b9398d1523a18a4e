"""PerRow: a metric that is the mean of one number a row. Rows that have no such number are left out of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from core.evaluation import memorisation, truth_ratio
from core.evaluation.rows import RowScore
from core.evaluation.stats import Floats, measure
from core.report.schema import Absent, Measurement


@dataclass(frozen=True)
class PerRow:
    """`value` is a row's number, or None; `missing` says why no row has one. `share`: how many must have one."""

    value: Callable[[RowScore], float | None]
    missing: str
    share: float = 0.5

    def __call__(self, rows: Sequence[RowScore], resamples: int) -> Measurement:
        """The mean with its interval; absent where too few rows have a number, which would speak for the others."""
        values = self.numbers(rows)
        values = values[np.isfinite(values)]
        if not len(values):
            return self.absent(rows)
        if len(values) >= self.share * len(rows):
            return measure(values, resamples)
        few = f"only {len(values)} of {len(rows)} rows could be measured, which is less than half"
        return Absent(absent=f"{few}; of the others: {self.missing}")

    def numbers(self, rows: Sequence[RowScore]) -> Floats:
        """(rows,); NaN where a row has none."""
        values = (self.value(row) for row in rows)
        return np.array([math.nan if value is None else value for value in values], dtype=np.float64)

    def absent(self, rows: Sequence[RowScore]) -> Absent:
        """Why there is no mean of these rows."""
        return Absent(absent=self.missing if rows else "no rows")


_UNSPOKEN = "no row has a prompt to generate from"
_NO_TOKEN = "no row has an answer token to count"
_NO_LOSS = "no row has an answer whose loss is a number"
_EVERYWHERE: dict[str, PerRow] = {
    "probability": PerRow(memorisation.probability, _NO_LOSS),
    "rouge_l": PerRow(lambda row: row.rouge_l, _UNSPOKEN),
    "rouge_l_f1": PerRow(lambda row: row.rouge_l_f1, _UNSPOKEN),
    "truth_ratio": PerRow(truth_ratio.on_retain, truth_ratio.MISSING),
    "exact_memorization": PerRow(memorisation.exact_memorization, _NO_TOKEN),
    "extraction_strength": PerRow(memorisation.extraction_strength, _NO_TOKEN),
    "embedding_accuracy": PerRow(
        lambda row: row.nearest, "no row was compared by evaluation.embedder: that takes perturbed answers and a prompt"
    ),
    "repetition": PerRow(lambda row: row.repetition, f"{_UNSPOKEN}, or every text is empty"),
    "entropy": PerRow(lambda row: row.entropy, _UNSPOKEN),
    "toxic": PerRow(
        lambda row: None if row.toxicity is None else row.toxicity > 0.5, "no row was judged by evaluation.classifier"
    ),
}
_FACTS = {
    "probability": PerRow(memorisation.choice, truth_ratio.NOTHING_PERTURBED),
    "truth_ratio": PerRow(truth_ratio.on_facts, truth_ratio.NOTHING_PERTURBED),
}
_ITS_OWN: dict[str, dict[str, PerRow]] = {
    "forget": {"truth_ratio": PerRow(truth_ratio.on_forget, truth_ratio.MISSING)},
    "real_authors": _FACTS,
    "world_facts": _FACTS,
}


def per_row(split: str, name: str) -> PerRow:
    """A set's metric. Raises KeyError for a name that is none of these."""
    return _ITS_OWN.get(split, {}).get(name) or _EVERYWHERE[name]
