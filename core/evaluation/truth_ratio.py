"""TOFU's truth ratio (arXiv:2401.06121), as its published aggregation computes it:
`r = exp(loss_paraphrase - mean_k loss_perturbed_k)` with token-mean losses, 0 where the model is sure of the truth."""

import math

from core.evaluation.memorisation import answer_loss
from core.evaluation.rows import RowScore

MISSING = "no row has both a paraphrased and a perturbed answer that fit into data.max_length"
NOTHING_PERTURBED = "no row has perturbed answers that fit into data.max_length"


def log_ratio(row: RowScore) -> float | None:
    """`log r`; None where the row has no paraphrase, no perturbation, or a loss that is no number."""
    return _less_perturbed(row.paraphrase_loss, row)


def on_forget(row: RowScore) -> float | None:
    """`min(r, 1/r)`: 1 where truth and perturbation are equally likely."""
    r = log_ratio(row)
    return None if r is None else math.exp(-abs(r))


def on_retain(row: RowScore) -> float | None:
    """`max(0, 1 - r)`: 1 where the truth is much likelier than its perturbations."""
    return _sure(log_ratio(row))


def on_facts(row: RowScore) -> float | None:
    """The same of real authors and world facts, where the answer itself stands for its paraphrase."""
    return _sure(_less_perturbed(answer_loss(row), row))


def _sure(r: float | None) -> float | None:
    return None if r is None else 1 - math.exp(min(r, 0.0))


def _less_perturbed(loss: float | None, row: RowScore) -> float | None:
    if loss is None or not row.perturbed_losses:
        return None
    difference = loss - sum(row.perturbed_losses) / len(row.perturbed_losses)
    return difference if math.isfinite(difference) else None
