"""Attacks: tries to bring back what was forgotten. Each measures the forget set once more under its own conditions, and
leaves the delivered model as it is."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from core.spec.base import Spec
from core.spec.retain import named


class AttackSpec(Spec):
    """What every attack shares: the name that its metrics begin with."""

    @property
    def label(self) -> str:
        """The first part of its metrics' names: `relearn` of `relearn.rouge_l`."""
        return str(getattr(self, "name", ""))


class Relearn(AttackSpec):
    """Fine-tune on a few forget rows, drawn by the seed, then score all the others (arXiv:2406.13356)."""

    citation: ClassVar[str] = "arXiv:2406.13356"
    name: Literal["relearn"] = "relearn"
    rows: int = Field(8, ge=1, le=10_000, description="rows to relearn from; of the forget set at most half are taken")
    steps: int = Field(20, ge=1, le=10_000, description="AdamW steps")
    batch_size: int = Field(4, ge=1, le=1024, description="rows in one step")
    lr: float = Field(1e-4, gt=0, le=1, description="constant rate, no weight decay")
    on: Literal["forget", "retain"] = Field(
        "forget", description="retain: relearn from related text instead, and score all forget rows"
    )

    @property
    def label(self) -> str:
        """`relearn`, or `relearn_retain`: what related text brings back says nothing of what forget rows would."""
        return "relearn" if self.on == "forget" else "relearn_retain"


class Quantize(AttackSpec):
    """Round the weights of linear layers to nearest, symmetrically: int8 a channel, int4 in groups (arXiv:2410.16454).

    Embeddings, norms and the head stay as they are.
    """

    citation: ClassVar[str] = "arXiv:2410.16454"
    name: Literal["quantize"] = "quantize"
    bits: Literal[4, 8] = Field(4, description="8: one scale an output channel; 4: one a group of `group` inputs")
    group: int = Field(128, ge=1, le=65_536, description="inputs that share a scale at 4 bits")

    @property
    def label(self) -> str:
        """`quantize_int4` or `quantize_int8`: both may be asked for."""
        return f"quantize_int{self.bits}"


class Paraphrase(AttackSpec):
    """Ask in other words: the records' `paraphrased_question` in place of the question."""

    name: Literal["paraphrase"] = "paraphrase"


class Prefix(AttackSpec):
    """Give the first k tokens of the answer, and score what follows."""

    name: Literal["prefix"] = "prefix"
    k: int = Field(5, ge=1, le=4096, description="answer tokens given away")


class FewShot(AttackSpec):
    """Put a few retain questions with their answers in front of the forget question."""

    name: Literal["few_shot"] = "few_shot"
    shots: int = Field(3, ge=1, le=64, description="retain rows in front, drawn by the seed")


class Noise(AttackSpec):
    """Add Gaussian noise to every weight, as a share of the standard deviation of its tensor."""

    name: Literal["noise"] = "noise"
    sigma: float = Field(0.01, gt=0, le=10, description="standard deviation of the noise over that of the tensor")


ATTACKS: dict[str, type[AttackSpec]] = {
    "relearn": Relearn,
    "quantize": Quantize,
    "paraphrase": Paraphrase,
    "prefix": Prefix,
    "few_shot": FewShot,
    "noise": Noise,
}
ATTACK_LABELS: dict[str, str] = {
    "relearn": "after fine-tuning on a few forget rows, on the others",
    "relearn_retain": "after fine-tuning on a few retain rows",
    "quantize_int8": "with weights rounded to 8 bits",
    "quantize_int4": "with weights rounded to 4 bits",
    "paraphrase": "asked in other words",
    "prefix": "given the first tokens of the answer",
    "few_shot": "with a few retain answers in front",
    "noise": "with noise on the weights",
}

Attack = Annotated[
    Relearn | Quantize | Paraphrase | Prefix | FewShot | Noise,
    Field(discriminator="name"),
    BeforeValidator(named),
]
