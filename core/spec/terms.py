"""Forget terms F: what a request minimises on the forget set, `weight * F + retain.weight * R`.

A method of the literature is a pair of F and R; core/spec/methods.py holds their published names.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from core.spec.base import FilePath, Spec, conflict
from core.spec.needs import Need
from core.spec.retain import HiddenRetain, Layer, NllRetain, NoRetain, RequiredRetain, RetainTerm, Weight

Sentence = Annotated[str, Field(min_length=1, max_length=500)]


class MethodSpec(Spec):
    """What every method has: a name, what it must see, and whether it uses the retain set without a retain term."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    needs_retain: ClassVar[bool] = False
    name: str


class ForgetTerm(MethodSpec):
    """What every method with a loss shares: the weight of its forget term, and the retain term it goes with."""

    weight: Weight = 1.0
    retain: RetainTerm = NoRetain()


class Ascent(ForgetTerm):
    """Gradient ascent: maximise the mean token loss on the forget answers. Unbounded; needs a small rate."""

    citation: ClassVar[str] = "arXiv:2210.01504, arXiv:2401.06121"
    name: Literal["ascent"] = "ascent"


class Wga(ForgetTerm):
    """Ascent that weights each token by its probability to a power, so that what is forgotten no longer pulls."""

    citation: ClassVar[str] = "arXiv:2502.19301"
    name: Literal["wga"] = "wga"
    beta: float = Field(1.0, ge=0, le=100, description="power of the token's probability; 0: plain ascent")


class SatImp(ForgetTerm):
    """Ascent with token weights for saturation and importance, `p^beta1 (1 - p)^beta2`."""

    citation: ClassVar[str] = "arXiv:2505.11953"
    name: Literal["satimp"] = "satimp"
    beta1: float = Field(5.0, ge=0, le=100, description="power of the token's probability p")
    beta2: float = Field(1.0, ge=0, le=100, description="power of 1 - p")


class Npo(ForgetTerm):
    """Negative preference optimisation: push the sequence likelihood below the reference's, with a bounded pull."""

    citation: ClassVar[str] = "arXiv:2404.05868"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference_sums"})
    name: Literal["npo"] = "npo"
    beta: float = Field(0.1, gt=0, le=100, description="inverse temperature of the preference")
    normalise: Literal["sequence", "tokens"] = Field(
        "sequence", description="compare the NLL of sequences, or their mean token loss as SOUL's code does"
    )


class SimNpo(ForgetTerm):
    """NPO without a reference: length-normalised, with a margin."""

    citation: ClassVar[str] = "arXiv:2410.07163"
    name: Literal["simnpo"] = "simnpo"
    weight: Weight = 0.125
    beta: float = Field(4.5, gt=0, le=100, description="inverse temperature of the preference")
    delta: float = Field(0.0, ge=-100, le=100, description="margin")


class Declining(ForgetTerm):
    """What methods share that put a refusal in place of the answer: where its sentences come from."""

    refusals: Annotated[list[Sentence], Field(min_length=1, max_length=1000)] | None = Field(
        None,
        description="refusal sentences to draw from; absent: Lethe's own list. The database and the signed report hold "
        "them, so name in them nothing that is to be forgotten",
    )
    refusals_file: FilePath | None = Field(
        None,
        description="a file of refusal sentences instead, one a line; the report holds its path, not its sentences",
    )

    @model_validator(mode="after")
    def _one_list(self) -> Self:
        if self.refusals is not None and self.refusals_file is not None:
            raise conflict("refusals_file", self.refusals_file, "Give refusals or refusals_file, not both.")
        return self


class Dpo(Declining):
    """Direct preference optimisation: another answer preferred to the true one, both compared with the reference."""

    citation: ClassVar[str] = "arXiv:2305.18290, arXiv:2401.06121"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference_sums", "alternative"})
    name: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0, le=100, description="inverse temperature of the preference")
    alternative: Literal["refusal", "alternative_answer"] = Field(
        "refusal", description="what is preferred: a refusal, or one of the record's own wrong answers"
    )

    @model_validator(mode="after")
    def _refusals_are_used(self) -> Self:
        given = self.refusals is not None or self.refusals_file is not None
        if given and self.alternative != "refusal":
            said = "Refusals go with alternative 'refusal', not 'alternative_answer'."
            raise conflict("alternative", self.alternative, said)
        return self


class Refusal(Declining):
    """Preference for refusal (PO; CL in SOUL): learn to answer forget questions with a refusal."""

    citation: ClassVar[str] = "arXiv:2404.18239, arXiv:2401.06121"
    name: Literal["refusal"] = "refusal"


class RandomLabel(ForgetTerm):
    """Learn to answer forget questions with the answers of other questions, drawn from the retain set."""

    citation: ClassVar[str] = "arXiv:2404.18239"
    needs_retain: ClassVar[bool] = True
    name: Literal["random_label"] = "random_label"


class CeRefForget(ForgetTerm):
    """Move away from the reference: raise the cross-entropy of its predictions, weighted by the current model's own.

    `mean_t sum_v p_cur log p_ref`; unlike a divergence its gradient is not zero at the start (SOUL calls it KL).
    """

    citation: ClassVar[str] = "arXiv:2404.18239"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference_logits"})
    name: Literal["ce_ref_forget"] = "ce_ref_forget"


class Undial(ForgetTerm):
    """Self-distillation from the reference with the true token's logit lowered."""

    citation: ClassVar[str] = "arXiv:2402.10052"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference_logits"})
    name: Literal["undial"] = "undial"
    beta: float = Field(10.0, ge=0, le=1000, description="by how much the true token's logit is lowered")


class CeU(ForgetTerm):
    """Cross-entropy unlearning: the target is the model's own prediction with the true token ruled out."""

    citation: ClassVar[str] = "arXiv:2503.01224"
    name: Literal["ce_u"] = "ce_u"
    skip: int = Field(1, ge=0, le=1000, description="first tokens of each answer that do not count")


class MaxEntropy(ForgetTerm):
    """Predict every token alike: KL(uniform || current) at the forget answers' positions."""

    citation: ClassVar[str] = "arXiv:2410.08109"
    name: Literal["max_entropy"] = "max_entropy"


class Ihl(ForgetTerm):
    """Inverted hinge loss: the true token below the runner-up, and no further; between 0 and 2."""

    citation: ClassVar[str] = "arXiv:2408.06621"
    name: Literal["ihl"] = "ihl"


class LogitFlat(ForgetTerm):
    """Flatten the logits: the squared gap between the largest and their mean (PDU, with a primal-dual retain term)."""

    citation: ClassVar[str] = "locuslab/open-unlearning, community/methods/PDU"
    name: Literal["logit_flat"] = "logit_flat"


class Rmu(ForgetTerm):
    """Representation misdirection: steer one layer's hidden states to a fixed random direction.

    Only `mlp.down_proj` of that layer and of the two below it is trained.
    """

    citation: ClassVar[str] = "arXiv:2403.03218"
    needs: ClassVar[frozenset[Need]] = frozenset({"layer"})
    name: Literal["rmu"] = "rmu"
    c: float = Field(20.0, gt=0, le=1e6, description="length of the vector that hidden states are steered to")
    layer: Layer | None = Field(
        None, description="layer, counted from 0; absent: at a quarter of the depth, at least 2 (7 of 32 layers)"
    )
    direction: int = Field(0, ge=0, lt=2**31, description="seed of the random direction")

    @model_validator(mode="after")
    def _one_layer(self) -> Self:
        if isinstance(self.retain, HiddenRetain) and self.retain.layer not in (None, self.layer):
            raise conflict("retain.layer", self.retain.layer, "'rmu' looks at one layer: leave retain.layer out.")
        return self


class Zero(ForgetTerm):
    """Fine-tune on the retain set alone (FT), optionally with a penalty on the size of the weights."""

    citation: ClassVar[str] = "arXiv:2404.18239"
    needs_retain: ClassVar[bool] = True
    name: Literal["zero"] = "zero"
    retain: RequiredRetain = NllRetain()
    l1: float = Field(0.0, ge=0, le=1, description="factor of the sum of all trained weights' absolute values")
