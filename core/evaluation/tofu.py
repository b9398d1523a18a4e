"""TOFU's two numbers (arXiv:2401.06121): forget quality against a model retrained without the forget set, and model
utility, the harmonic mean of nine metrics of what must stay."""

from collections.abc import Sequence

import numpy as np

from core.evaluation.evidence import Evidence
from core.evaluation.per_row import PerRow, per_row
from core.evaluation.stats import Floats, measure_means, with_interval
from core.evaluation.truth_ratio import MISSING, log_ratio
from core.evaluation.two_samples import compare, ks
from core.report.schema import Absent, Measured, Measurement

NO_RETRAINED = "there are no rows of a model retrained without the forget set (evaluation.retrained)"
_RATIO = PerRow(log_ratio, MISSING)
_SETS = ("retain", "real_authors", "world_facts")
_OF_EACH = ("probability", "rouge_l", "truth_ratio")


def forget_quality(evidence: Evidence, _: int) -> Measurement:
    """p-value of the two-sample KS test between the truth ratios on forget of both models; it has no interval."""
    # A second of importing that no other metric needs.
    from scipy.stats import ks_2samp

    ratios = _ratios(evidence)
    if isinstance(ratios, Absent):
        return ratios
    p = float(ks_2samp(*ratios).pvalue)
    return Measured(value=p, rows=len(ratios[0]), low=None, high=None)


def ks_distance(evidence: Evidence, resamples: int) -> Measurement:
    """The distance D of that test; both models' rows are of the same records and drawn together."""
    ratios = _ratios(evidence)
    if isinstance(ratios, Absent):
        return ratios
    value, drawn = compare(*ratios, ks, resamples, streams=(0, 0))
    return with_interval(value, len(ratios[0]), drawn, min(map(len, ratios)))


def model_utility(evidence: Evidence, resamples: int) -> Measurement:
    """Harmonic mean of probability, ROUGE-L recall and truth ratio on retain, real authors and world facts.

    0 where one of them is 0. Each set is resampled for itself; the rows counted are those of all three.
    """
    samples: list[Floats] = []
    for split in _SETS:
        rows = evidence.rows.get(split, ())
        numbers = []
        for name in _OF_EACH:
            metric = per_row(split, name)
            numbers.append(metric.numbers(rows))
            if not np.isfinite(numbers[-1]).any():
                return Absent(absent=f"{split}.{name} is absent: {metric.absent(rows).absent}")
        samples.append(_sample(np.stack(numbers)))
    return measure_means(samples, _harmonic, resamples)


def _ratios(evidence: Evidence) -> tuple[Floats, Floats] | Absent:
    """log r on forget of the model and of the one retrained: the test asks only which is larger."""
    retrained = evidence.retrained.get("forget", ())
    if not retrained:
        return Absent(absent=NO_RETRAINED)
    found = []
    for rows, whose in ((evidence.rows.get("forget", ()), ""), (retrained, "of the retrained model, ")):
        ratios = _RATIO.numbers(rows)
        found.append(ratios[np.isfinite(ratios)])
        if not len(found[-1]):
            return Absent(absent=f"{whose}{_RATIO.absent(rows).absent}")
    return found[0], found[1]


def _sample(numbers: Floats) -> Floats:
    """(3, rows) numbers, NaN where there is none, as (6, rows): 0 in its place, and whether there is one."""
    exists = np.isfinite(numbers)
    used = exists.any(axis=0)
    return np.concatenate([np.where(exists, numbers, 0.0), exists])[:, used]


def _harmonic(samples: Sequence[Floats]) -> Floats:
    """From each set's means of three numbers, and of whether they exist, to (draws,)."""
    # A draw that holds no row with some number divides by 0, and so has no value.
    with np.errstate(divide="ignore", invalid="ignore"):
        nine = np.concatenate([means[:3] / means[3:] for means in samples])
        return np.asarray(len(nine) / (1 / nine).sum(axis=0))
