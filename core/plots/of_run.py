"""The plots of one run: losses, looks along the way, and how the rows' scores lie before and after."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from core import plots
from core.evaluation import memorisation
from core.evaluation.evidence import Rows
from core.evaluation.membership import min_k
from core.evaluation.rows import RowScore, file_of, read_rows
from core.evaluation.scorer import Scorer
from core.report.schema import Report

_SETS = ("forget", "holdout", "retain")
_SCORES: dict[str, tuple[str, Callable[[RowScore], float | None], str]] = {
    "probability": ("Probability of the answer", memorisation.probability, ""),
    "rouge_l": ("ROUGE-L recall of the greedy answer", lambda row: row.rouge_l, ""),
    "min_k": ("Mean of the lowest 40% of log-probabilities", min_k(40), "nats"),
}


def drawn(folder: Path, report: Report, scorer: Scorer) -> list[Path]:
    """Draw them; what has too few points is left out."""
    chosen = report.training.delivered_step if report.training.looks else None
    made = [plots.curves(folder, report.training.curve), plots.looks(folder, report.training.looks, chosen)]
    rows = {when: {name: _rows(scorer, when, name) for name in _SETS} for when in ("before", "after")}
    return [path for path in (*made, *distributions(folder, rows)) if path is not None]


def distributions(folder: Path, rows: Mapping[str, Rows]) -> list[Path]:
    """How each score lies in the sets that membership and utility compare, `rows` being by when and set."""
    made = []
    labelled = {f"{name}, {when}": own[name] for when, own in rows.items() for name in _SETS if own.get(name)}
    for name, (title, value, unit) in _SCORES.items():
        series = {label: [v for v in map(value, own) if v is not None] for label, own in labelled.items()}
        series = {label: values for label, values in series.items() if values}
        made.append(plots.distributions(folder, name, title, series, unit=unit) if series else None)
    return [path for path in made if path is not None]


def _rows(scorer: Scorer, when: str, name: str) -> Sequence[RowScore]:
    """The rows of a set as scored in this process, or as an earlier attempt left them."""
    found = scorer.rows(when)
    if found is not None:
        return found.get(name, ())
    file = file_of(scorer.folder, when, name) if scorer.folder else None
    return read_rows(file)[0] if file is not None else ()
