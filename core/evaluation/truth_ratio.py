"""TOFU's truth ratio (arXiv:2401.06121), as its published aggregation computes it:
`r = exp(loss_paraphrase - mean_k loss_perturbed_k)` with token-mean losses, 0 where the model is sure of the truth."""

import math

from core.evaluation.score import RowScore

MISSING = "no row has both a paraphrased and a perturbed answer that fit into data.max_length"
# exp overflows beyond this; a ratio this far from 1 is 0 or infinite for either aggregate.
_LIMIT = 700.0


def _log_ratio(row: RowScore) -> float | None:
    if row.paraphrase_loss is None or not row.perturbed_losses:
        return None
    difference = row.paraphrase_loss - sum(row.perturbed_losses) / len(row.perturbed_losses)
    return max(-_LIMIT, min(_LIMIT, difference))


def on_forget(row: RowScore) -> float | None:
    """`min(r, 1/r)`: 1 where truth and perturbation are equally likely."""
    r = _log_ratio(row)
    return None if r is None else math.exp(-abs(r))


def elsewhere(row: RowScore) -> float | None:
    """`max(0, 1 - r)`: 1 where the truth is much likelier than its perturbations."""
    r = _log_ratio(row)
    return None if r is None else max(0.0, 1 - math.exp(r))
