"""What to minimise: `weight * F + retain.weight * R`, F a forget term on the forget set, R a retain term on retain.

A method of the literature is a pair of the two; ALIASES holds their published names.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from core.spec.base import Spec

Weight = Annotated[float, Field(ge=0, le=1e6)]
Sentence = Annotated[str, Field(min_length=1, max_length=500)]


class NoRetain(Spec):
    """No retain term: only forgetting is optimised."""

    name: Literal["none"] = "none"
    weight: Annotated[float, Field(ge=0, le=0)] = 0.0


class NllRetain(Spec):
    """Mean token negative log-likelihood of the retain answers."""

    name: Literal["nll"] = "nll"
    weight: Weight = 1.0


class KlRetain(Spec):
    """KL(reference || current), mean over the retain answers' positions."""

    name: Literal["kl"] = "kl"
    weight: Weight = 1.0


RETAIN_TERMS: dict[str, type[Spec]] = {"none": NoRetain, "nll": NllRetain, "kl": KlRetain}


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


RetainTerm = Annotated[NoRetain | NllRetain | KlRetain, Field(discriminator="name"), BeforeValidator(_named)]


class ForgetTerm(Spec):
    """What every method with a loss shares: the weight of its forget term, and the retain term it goes with."""

    name: str
    weight: Weight = 1.0
    retain: RetainTerm = NoRetain()


class Ascent(ForgetTerm):
    """Gradient ascent: maximise the mean token loss on the forget answers. Unbounded; needs a small rate."""

    citation: ClassVar[str] = "arXiv:2210.01504, arXiv:2401.06121"
    name: Literal["ascent"] = "ascent"


class Npo(ForgetTerm):
    """Negative preference optimisation: push the sequence likelihood below the reference's, with a bounded pull."""

    citation: ClassVar[str] = "arXiv:2404.05868"
    name: Literal["npo"] = "npo"
    beta: float = Field(0.1, gt=0, le=100, description="inverse temperature of the preference")


class SimNpo(ForgetTerm):
    """NPO without a reference: length-normalised, with a margin."""

    citation: ClassVar[str] = "arXiv:2410.07163"
    name: Literal["simnpo"] = "simnpo"
    weight: Weight = 0.125
    beta: float = Field(4.5, gt=0, le=100, description="inverse temperature of the preference")
    delta: float = Field(0.0, ge=-100, le=100, description="margin")


class Refusal(ForgetTerm):
    """Preference for refusal (PO; CL in SOUL): learn to answer forget questions with a refusal."""

    citation: ClassVar[str] = "arXiv:2404.18239, arXiv:2401.06121"
    name: Literal["refusal"] = "refusal"
    refusals: Annotated[list[Sentence], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="refusal sentences to draw from; absent: Lethe's own list"
    )


FORGET_TERMS: dict[str, type[ForgetTerm]] = {"ascent": Ascent, "npo": Npo, "simnpo": SimNpo, "refusal": Refusal}

ALIASES: dict[str, dict[str, Any]] = {
    "GA": {"name": "ascent"},
    "GradDiff": {"name": "ascent", "retain": {"name": "nll"}},
    "PO": {"name": "refusal", "retain": {"name": "nll"}},
    "NPO": {"name": "npo", "retain": {"name": "nll"}},
}


def _expanded(value: Any) -> Any:
    """`"GradDiff"` and `{"name": "GradDiff", "weight": 2}` both become the method they stand for; own fields win."""
    value = _named(value)
    if isinstance(value, dict) and isinstance(value.get("name"), str) and value["name"] in ALIASES:
        alias = ALIASES[value["name"]]
        own = {k: v for k, v in value.items() if k != "name"}
        retain = own.get("retain")
        if isinstance(retain, dict) and "name" not in retain and "retain" in alias:
            own["retain"] = {**alias["retain"], **retain}
        return {**alias, **own}
    return value


Method = Annotated[Ascent | Npo | SimNpo | Refusal, Field(discriminator="name"), BeforeValidator(_expanded)]
