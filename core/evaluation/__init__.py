"""METRICS: every metric by the name a gate uses, as a function of the rows that were scored."""

from collections.abc import Callable, Sequence

from core.evaluation import muse, passages, tofu
from core.evaluation.evidence import Evidence
from core.evaluation.membership import Separation
from core.evaluation.memorisation import perplexity
from core.evaluation.per_row import per_row
from core.evaluation.rows import RowScore
from core.report.schema import Absent, Measurement
from core.spec.attacks import ATTACK_LABELS
from core.spec.metrics import METRICS as NAMED
from core.spec.metrics import OF_ATTACKS, info

Metric = Callable[[Evidence, int], Measurement]
OfRows = Callable[[Sequence[RowScore], int], Measurement]

_WHOLE: dict[str, Metric] = {
    "tofu.forget_quality": tofu.forget_quality,
    "tofu.ks_distance": tofu.ks_distance,
    "tofu.model_utility": tofu.model_utility,
    "muse.privleak": muse.privleak,
}


def _of_set(split: str, name: str) -> OfRows:
    kind, _, length = name.rpartition("_")
    if name == "perplexity":
        return perplexity
    if kind == "bleu":
        return lambda rows, resamples: passages.bleu(rows, int(length), resamples)
    return passages.rouge_l(int(length)) if length.isdecimal() else per_row(split, name)


def _metric(full: str) -> Metric:
    if full in _WHOLE:
        return _WHOLE[full]
    split, _, name = full.partition(".")
    if split == "membership":
        return Separation(*name.split("."))
    of_rows = _of_set(split, name)
    return lambda evidence, resamples: of_rows(evidence.rows.get(split, ()), resamples)


def _with_reason(full: str) -> Metric:
    """The metric; where it is absent for want of something asked for, with the reason why that is not there."""
    metric, needs = _metric(full), info(full).needs

    def told(evidence: Evidence, resamples: int) -> Measurement:
        found = metric(evidence, resamples)
        reasons = [evidence.missing[need] for need in needs if need in evidence.missing]
        return Absent(absent=reasons[0]) if reasons and isinstance(found, Absent) else found

    return told


# Those of attacks are metrics of the forget set under other conditions: see `of_attack`.
METRICS: dict[str, Metric] = {name: _with_reason(name) for name in NAMED if name.partition(".")[0] not in ATTACK_LABELS}


def measured(evidence: Evidence, resamples: int) -> dict[str, Measurement]:
    """Every metric whose sets are all among the rows, in the table's order, with interval or reason."""
    return {
        name: metric(evidence, resamples)
        for name, metric in METRICS.items()
        if all(split in evidence.rows for split in info(name).sets)
    }


def of_attack(rows: Sequence[RowScore], resamples: int) -> dict[str, Measurement]:
    """What is measured of the forget set's rows under an attack, by name without the attack's."""
    return {name: per_row("forget", name)(rows, resamples) for name in OF_ATTACKS}


__all__ = ["METRICS", "Evidence", "Metric", "measured", "of_attack"]
