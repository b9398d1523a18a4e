"""METRICS: every metric by the name a gate uses, as a function of a set's rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.evaluation import memorisation, truth_ratio
from core.evaluation.score import RowScore
from core.evaluation.stats import measure, measure_ratio
from core.report.schema import Measurement

Metric = Callable[[Sequence[RowScore], int], Measurement]


@dataclass(frozen=True)
class _PerRow:
    """A metric that is the mean of one number a row; rows for which it does not exist are left out."""

    value: Callable[[RowScore], float | None]
    missing: str

    def __call__(self, rows: Sequence[RowScore], resamples: int) -> Measurement:
        return measure([v for v in map(self.value, rows) if v is not None], self.missing, resamples)


def _perplexity(rows: Sequence[RowScore], resamples: int) -> Measurement:
    return measure_ratio([r.nll for r in rows], [r.tokens for r in rows], resamples)


_SHARED: dict[str, Metric] = {
    "probability": _PerRow(memorisation.probability, "no rows"),
    "rouge_l": _PerRow(lambda r: r.rouge_l, "no row has a prompt to generate from"),
    "exact_memorization": _PerRow(memorisation.exact_memorization, "no row has an answer token to count"),
}
METRICS: dict[str, dict[str, Metric]] = {
    "forget": {**_SHARED, "truth_ratio": _PerRow(truth_ratio.on_forget, truth_ratio.MISSING)},
    "retain": {
        **_SHARED,
        "truth_ratio": _PerRow(truth_ratio.elsewhere, truth_ratio.MISSING),
        "perplexity": _perplexity,
    },
}


def metrics_of(set_name: str, rows: Sequence[RowScore], resamples: int) -> dict[str, Measurement]:
    """Every metric of a set, by full name, from its rows."""
    return {f"{set_name}.{name}": metric(rows, resamples) for name, metric in METRICS[set_name].items()}
