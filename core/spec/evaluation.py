"""How scoring is done, what is measured beyond the sets' own metrics, and which attacks are tried."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from core.spec.attacks import Attack
from core.spec.base import FilePath, Spec, conflict
from core.spec.models import ModelReference
from core.spec.sources import Located

Membership = Literal["loss", "zlib", "min_k", "min_k_plus_plus", "reference", "grad_norm"]
TASK = r"^[A-Za-z0-9_][A-Za-z0-9_:/.-]{0,149}$"


class Retrained(Spec):
    """The model retrained without the forget set, or the folder of rows that scoring one left: what TOFU's forget
    quality and MUSE's privleak compare with."""

    model: ModelReference | None = None
    rows: FilePath | None = Field(None, description="a folder of rows, as `lethe evaluate` leaves it")

    @model_validator(mode="after")
    def _one_of_them(self) -> "Retrained":
        if (self.model is None) == (self.rows is None):
            raise conflict("rows", self.rows, "Give exactly one of model and rows.")
        return self


def _retrained(value: Any) -> Any:
    short = isinstance(value, str) or (isinstance(value, dict) and value and value.keys() <= {"id", "path"})
    return {"model": value} if short else value


class Beside(Located):
    """A model that judges texts: a local folder, or an id of the hub at a pinned revision; safetensors weights only."""


class Classifier(Beside):
    """A text classifier whose score for `label` is toxicity, for example unitary/toxic-bert."""

    label: str = Field("toxic", min_length=1, max_length=100, description="which of its labels means toxic")


class LmEval(Spec):
    """Tasks of lm-evaluation-harness, run with the model in memory. SOUL's are boolq, rte, hellaswag, winogrande,
    arc_challenge, arc_easy, openbookqa, piqa and truthfulqa, and wikitext for perplexity."""

    tasks: list[Annotated[str, Field(pattern=TASK)]] = Field(min_length=1, max_length=200)
    limit: int | None = Field(None, ge=1, le=1_000_000, description="documents of each task; absent: all")
    num_fewshot: int | None = Field(None, ge=0, le=100, description="absent: each task's own")
    include_path: FilePath | None = Field(
        None, description="a folder of task files of one's own; they may run code, so a service refuses it"
    )


def _pathed(value: Any) -> Any:
    """`"folder"` is short for `{"path": "folder"}`."""
    return {"path": value} if isinstance(value, str) else value


class Evaluation(Spec):
    """How scoring is done. Batch sizes change speed and memory, never a number beyond float rounding."""

    batch_tokens: int = Field(8192, ge=64, le=10_000_000, description="tokens in one forward pass")
    max_new_tokens: int = Field(128, ge=1, le=4096, description="upper bound on a greedy answer's length")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: matrix products in bf16; log-probabilities then hold to two digits"
    )
    watch_every: int | None = Field(
        None,
        ge=1,
        description="optimizer steps between looks along the way; absent: ten looks, fewer where they would cost more "
        "than a tenth of training",
    )
    watch_rows: int = Field(16, ge=0, le=10_000, description="rows of each set looked at along the way; 0: none")
    bootstrap: int = Field(1000, ge=100, le=100_000, description="resamples for the 95% interval")
    membership: list[Membership] = Field(
        ["loss", "zlib", "min_k", "min_k_plus_plus"],
        max_length=6,
        description="scores that tell forget from data.holdout; grad_norm takes a backward pass a row",
    )
    retrained: Annotated[Retrained, BeforeValidator(_retrained)] | None = Field(
        None, description="the model retrained without the forget set: {model} or {rows}"
    )
    reference: ModelReference | None = Field(
        None, description="another model of the same tokens, for membership by loss less its loss"
    )
    embedder: Annotated[Beside, BeforeValidator(_pathed)] | None = Field(
        None, description="a sentence-transformers model, for embedding accuracy: {path} or {hub, revision}"
    )
    classifier: Annotated[Classifier, BeforeValidator(_pathed)] | None = Field(
        None, description="a toxicity classifier: {path} or {hub, revision}"
    )
    lm_eval: LmEval | None = Field(None, description="benchmark tasks for utility")
    attacks: list[Attack] = Field([], max_length=8, description="tries to bring the knowledge back, after the run")
    rows: bool = Field(True, description="keep the scores of every row, in files to be protected as the forget set")
    plots: bool = Field(True, description="draw curves and distributions as SVG beside the report")

    @model_validator(mode="after")
    def _each_attack_once(self) -> "Evaluation":
        labels = [attack.label for attack in self.attacks]
        for i, label in enumerate(labels):
            if label in labels[:i]:
                said = f"'{label}' is asked for twice; its metrics would have one name."
                raise conflict(f"attacks.{i}.name", self.attacks[i].model_dump()["name"], said)
        return self

    @model_validator(mode="after")
    def _reference_where_asked(self) -> "Evaluation":
        if "reference" in self.membership and self.reference is None:
            said = "membership 'reference' needs evaluation.reference, a model to compare losses with."
            raise conflict("membership", list(self.membership), said)
        return self


__all__ = ["Beside", "Classifier", "Evaluation", "LmEval", "Retrained"]
