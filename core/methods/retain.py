"""RETAIN_TERMS: what keeps the rest of the model in place."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import log_softmax

from core.methods import Need
from core.views import View


@dataclass(frozen=True)
class Retain:
    """A retain term; `loss` is None for the one that does nothing, so that its set is not even run."""

    loss: Callable[[View], Tensor] | None
    needs: frozenset[Need] = frozenset()


def nll(view: View) -> Tensor:
    """`mean_t n_t` on the retain answers."""
    return view.nll.sum() / view.step_tokens


def kl(view: View) -> Tensor:
    """`mean_t KL(reference || current)` at the retain answers' positions: 0 with zero gradient at the reference."""
    assert view.reference_logits is not None
    reference = log_softmax(view.reference_logits, dim=-1)
    return (reference.exp() * (reference - log_softmax(view.logits, dim=-1))).sum() / view.step_tokens


RETAIN_TERMS: dict[str, Retain] = {
    "none": Retain(None),
    "nll": Retain(nll),
    "kl": Retain(kl, needs=frozenset({"reference_logits"})),
}
