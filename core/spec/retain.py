"""Retain terms R, what keeps the rest of the model in place, and the course of their weight in a run."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from core.spec.base import Spec
from core.spec.needs import Need

Weight = Annotated[float, Field(ge=0, le=1e6)]
Layer = Annotated[int, Field(ge=0, le=1000)]


def named(value: Any) -> Any:
    """`"kl"` is short for `{"name": "kl"}`."""
    return {"name": value} if isinstance(value, str) else value


class Constant(Spec):
    """The same weight throughout."""

    name: Literal["constant"] = "constant"


class Linear(Spec):
    """The weight rises with the epochs, `weight * epoch / epochs`, epochs counted from 0 (SOUL's `_epoch` methods).

    An epoch is one pass over the forget set; in the first one the weight is 0.
    """

    citation: ClassVar[str] = "arXiv:2404.18239"
    name: Literal["linear"] = "linear"


class PrimalDual(Spec):
    """The weight is the dual variable of `R <= eps`: after each step `w <- max(0, w + eta (R - eps))`."""

    name: Literal["primal_dual"] = "primal_dual"
    eta: float = Field(0.1, gt=0, le=1e6, description="step size of the dual variable")
    eps: float = Field(0.1, ge=0, le=1e6, description="what the retain term may rise to, unweighted")
    warmup_epochs: float = Field(0.0, ge=0, le=1000, description="epochs before the weight begins to move")


SCHEDULES: dict[str, type[Spec]] = {"constant": Constant, "linear": Linear, "primal_dual": PrimalDual}

Schedule = Annotated[Constant | Linear | PrimalDual, Field(discriminator="name"), BeforeValidator(named)]


class NoRetain(Spec):
    """No retain term: only forgetting is optimised."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    name: Literal["none"] = "none"
    weight: Annotated[float, Field(ge=0, le=0)] = 0.0
    schedule: Constant = Constant()


class Scheduled(Spec):
    """What every retain term shares: its weight, and how that moves in the course of a run."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    weight: Weight = 1.0
    schedule: Schedule = Field(Constant(), description="the weight's course")


class NllRetain(Scheduled):
    """Mean token negative log-likelihood of the retain answers."""

    name: Literal["nll"] = "nll"


class KlRetain(Scheduled):
    """KL(reference || current), mean over the retain answers' positions."""

    needs: ClassVar[frozenset[Need]] = frozenset({"reference_logits"})
    name: Literal["kl"] = "kl"


class CeRefRetain(Scheduled):
    """Cross-entropy of the reference under the current model's own weights: what SOUL's code calls KL.

    `-mean_t sum_v p_cur log p_ref` is smallest where the current model is sure of the reference's likeliest token, so
    unlike a divergence it sharpens predictions.
    """

    citation: ClassVar[str] = "arXiv:2404.18239"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference_logits"})
    name: Literal["ce_ref"] = "ce_ref"


class HiddenRetain(Scheduled):
    """Mean squared distance of hidden states of one layer from the reference's; small numbers, hence the weight."""

    citation: ClassVar[str] = "arXiv:2403.03218"
    needs: ClassVar[frozenset[Need]] = frozenset({"layer", "reference_layer"})
    name: Literal["hidden"] = "hidden"
    weight: Weight = 100.0
    layer: Layer | None = Field(
        None, description="layer, counted from 0; absent: the forget term's, or the one at a quarter of the depth"
    )


RETAIN_TERMS: dict[str, type[NoRetain | Scheduled]] = {
    "none": NoRetain,
    "nll": NllRetain,
    "kl": KlRetain,
    "ce_ref": CeRefRetain,
    "hidden": HiddenRetain,
}

RetainTerm = Annotated[
    NoRetain | NllRetain | KlRetain | CeRefRetain | HiddenRetain, Field(discriminator="name"), BeforeValidator(named)
]

# For methods that minimise nothing else.
RequiredRetain = Annotated[
    NllRetain | KlRetain | CeRefRetain | HiddenRetain, Field(discriminator="name"), BeforeValidator(named)
]
