"""METHODS: every method by name, with its loss and what that needs to see. RETAIN_TERMS is its twin in retain.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from core.methods.distributions import ce_ref_forget, ce_u, ihl, logit_flat, max_entropy, undial
from core.methods.inner import rmu
from core.methods.preference import dpo, npo, simnpo
from core.methods.token_nll import answered, ascent, satimp, wga
from core.spec import edits, terms
from core.spec.needs import Need
from core.views import View


@dataclass(frozen=True)
class Method:
    """A method: its spec class, its loss on the forget set if it has one, and what stands in that set's place."""

    spec: type[terms.MethodSpec]
    loss: Callable[[View, Any], Tensor] | None = None
    looks_at: Literal["forget", "refusal", "random_label"] = "forget"

    @property
    def needs(self) -> frozenset[Need]:
        """What the loss must see beyond log-probabilities; one that needs `layer` sees no logits."""
        return self.spec.needs


METHODS: dict[str, Method] = {
    "ascent": Method(terms.Ascent, ascent),
    "wga": Method(terms.Wga, wga),
    "satimp": Method(terms.SatImp, satimp),
    "npo": Method(terms.Npo, npo),
    "simnpo": Method(terms.SimNpo, simnpo),
    "dpo": Method(terms.Dpo, dpo),
    "refusal": Method(terms.Refusal, answered, looks_at="refusal"),
    "random_label": Method(terms.RandomLabel, answered, looks_at="random_label"),
    "ce_ref_forget": Method(terms.CeRefForget, ce_ref_forget),
    "undial": Method(terms.Undial, undial),
    "ce_u": Method(terms.CeU, ce_u),
    "max_entropy": Method(terms.MaxEntropy, max_entropy),
    "ihl": Method(terms.Ihl, ihl),
    "logit_flat": Method(terms.LogitFlat, logit_flat),
    "rmu": Method(terms.Rmu, rmu),
    # No loss on the forget set: what they do to the weights, if anything, is in core/edits.
    "zero": Method(terms.Zero),
    "task_vector": Method(edits.TaskVector, answered),
    "influence": Method(edits.Influence),
    "retrain": Method(edits.Retrain),
    "guard": Method(edits.Guard),
    "origin": Method(edits.Origin),
}

__all__ = ["METHODS", "Method", "Need"]
