"""FinetuneSpec: which model to train on which set before anything is forgotten, and the job it is carried out as.

Its defaults are those with which SOUL (arXiv:2404.18239) made the models that were to forget: 10 epochs of 16 rows at
1e-5, falling linearly to 0, without warm-up or weight decay.
"""

from typing import Any

from pydantic import Field, model_validator

from core.spec.base import Spec, conflict
from core.spec.job import JobSpec, digest_of, validated
from core.spec.models import ModelReference
from core.spec.optimizers import AdamW, Optimizer
from core.spec.presets import expand_finetuning
from core.spec.retain import NllRetain
from core.spec.sources import Data, PromptFormat, Source
from core.spec.terms import Zero
from core.spec.training import Training

_EPOCHS = 10.0


class FinetuneData(Spec):
    """The set to learn, and how a question becomes a prompt."""

    train: Source
    prompt: PromptFormat = Field(
        "plain", description="how a question becomes a prompt; `prompt` and `text` rows are raw"
    )
    max_length: int = Field(512, ge=8, le=131_072, description="tokens of prompt and answer together")


class FinetuneTraining(Training):
    """As for a request, with SOUL's defaults for fine-tuning."""

    epochs: float | None = Field(None, gt=0, le=1000, description="passes over the set; 10 unless steps are given")
    batch_size: int = Field(16, ge=1, le=65_536, description="rows in one optimizer step")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps over which the rate rises from 0")


class FinetuneSpec(Spec):
    """What to train on what. The loss is the mean token loss of the answers; of text every token counts."""

    model: ModelReference
    data: FinetuneData
    optimizer: Optimizer = AdamW(lr=1e-5, weight_decay=0.0)
    training: FinetuneTraining = FinetuneTraining()
    seed: int = Field(0, ge=0, lt=2**31)
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; part of what makes a run repeatable")

    @model_validator(mode="after")
    def _one_set(self) -> "FinetuneSpec":
        on = getattr(self.optimizer, "curvature_on", "retain")
        if on != "retain":
            said = "Nothing is forgotten here: the set to learn is the one to retain. Allowed: retain."
            raise conflict("optimizer.curvature_on", on, said)
        return self

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the resolved spec, as 64 hex digits."""
        return digest_of(self.model_dump(mode="json"))

    def job(self) -> JobSpec:
        """Fine-tuning as a request: nothing is forgotten, and the set to learn is the one to retain."""
        given = self.training
        epochs = _EPOCHS if given.epochs is None and given.steps is None else given.epochs
        # Not validated again: a request may not forget and retain the same set, but here nothing forgets it.
        data = Data.model_construct(
            forget=self.data.train,
            retain=self.data.train,
            forget_ratio=1.0,
            self_retain=False,
            seed=0,
            prompt=self.data.prompt,
            max_length=self.data.max_length,
        )
        return JobSpec.model_construct(
            model=self.model,
            data=data,
            method=Zero(retain=NllRetain()),
            optimizer=self.optimizer,
            training=Training(**{**given.model_dump(), "epochs": epochs}),
            seed=self.seed,
            threads=self.threads,
        )


def parse(data: Any) -> FinetuneSpec:
    """Read a fine-tuning request from decoded JSON. Raises SpecError with every problem found."""
    return validated(FinetuneSpec, expand_finetuning(data))
