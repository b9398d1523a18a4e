"""How long, in what batches, with which schedule."""

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from core.spec.base import Spec


class Training(Spec):
    """An optimizer step sees `batch_size` forget rows and as many retain rows, in as many forward passes as
    `micro_batch_tokens` makes necessary; the passes change speed and memory, not the update."""

    epochs: float | None = Field(
        None, gt=0, le=1000, description="passes over the forget set; 5 unless steps are given"
    )
    steps: int | None = Field(None, ge=1, le=1_000_000, description="optimizer steps, instead of epochs")
    batch_size: int = Field(4, ge=1, le=65_536, description="forget rows in one optimizer step")
    micro_batch_tokens: int = Field(4096, ge=16, le=10_000_000, description="padded tokens in one forward pass")
    schedule: Literal["linear", "constant"] = "linear"
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the rate rises from 0")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the global gradient norm; null: no clipping")
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints; absent: every two minutes")

    @model_validator(mode="after")
    def _one_length(self) -> "Training":
        if self.epochs is not None and self.steps is not None:
            raise PydanticCustomError("two_lengths", "Give epochs or steps, not both.", {})
        return self
