"""METHODS: every forget term by name, with what it needs to see. RETAIN_TERMS is its twin in retain.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from core.methods.preference import npo, simnpo
from core.methods.token_nll import ascent, refusal
from core.spec import terms
from core.views import View

Need = Literal["reference_sums", "reference_logits"]


@dataclass(frozen=True)
class Method:
    """A forget term: its spec class, its loss, the set it looks at, and what it needs beyond log-probabilities."""

    spec: type[terms.ForgetTerm]
    loss: Callable[[View, Any], Tensor]
    needs: frozenset[Need] = frozenset()
    looks_at: Literal["forget", "refusal"] = "forget"


METHODS: dict[str, Method] = {
    "ascent": Method(terms.Ascent, ascent),
    "npo": Method(terms.Npo, npo, needs=frozenset({"reference_sums"})),
    "simnpo": Method(terms.SimNpo, simnpo),
    "refusal": Method(terms.Refusal, refusal, looks_at="refusal"),
}
