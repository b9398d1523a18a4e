"""RETAIN_TERMS: what keeps the rest of the model in place."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from core.methods.distributions import ce_under_current, kl_from_reference
from core.methods.inner import hidden
from core.spec import retain as specs
from core.spec.needs import Need
from core.views import View


@dataclass(frozen=True)
class Retain:
    """A retain term; `loss` is None for the one that does nothing, so that its set is not even run."""

    spec: type[specs.NoRetain | specs.Scheduled]
    loss: Callable[[View], Tensor] | None = None

    @property
    def needs(self) -> frozenset[Need]:
        """What the loss must see beyond log-probabilities; one that needs `layer` sees no logits."""
        return self.spec.needs


def nll(view: View) -> Tensor:
    """`mean_t n_t` on the retain answers."""
    return view.nll.sum() / view.step_tokens


def kl(view: View) -> Tensor:
    """`mean_t KL(reference || current)` at the retain answers' positions: 0 with zero gradient at the reference."""
    return view.per_token(kl_from_reference).sum() / view.step_tokens


def ce_ref(view: View) -> Tensor:
    """`-mean_t sum_v p_cur log p_ref` (the +KL of arXiv:2404.18239's code); its gradient at the reference is not 0."""
    return view.per_token(ce_under_current).sum() / view.step_tokens


RETAIN_TERMS: dict[str, Retain] = {
    "none": Retain(specs.NoRetain),
    "nll": Retain(specs.NllRetain, nll),
    "kl": Retain(specs.KlRetain, kl),
    "ce_ref": Retain(specs.CeRefRetain, ce_ref),
    "hidden": Retain(specs.HiddenRetain, hidden),
}
