"""How long, in what batches, with which schedule, and which weights."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from core.spec.base import Spec, conflict
from core.spec.retain import named


def _all_or_names(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        raise PydanticCustomError(
            "adapter_targets",
            "Input should be 'all-linear' or a list of module names, for example ['q_proj', 'v_proj']",
        ) from None


def _each_once(layers: Sequence[int]) -> Sequence[int]:
    if len(set(layers)) < len(layers):
        raise PydanticCustomError("layers_twice", "Input should name each layer once")
    return layers


def _gates(value: Any) -> Any:
    """`"gates"` is short for `{}`."""
    if value == "gates":
        return {}
    if value is not None and not isinstance(value, dict | StopWhen):
        raise PydanticCustomError(
            "stop_when", "Input should be 'gates', a JSON object with rows, every or budget, or null"
        )
    return value


Targets = Annotated[
    Literal["all-linear"]
    | Annotated[list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,200}$")]], Field(min_length=1, max_length=1000)],
    WrapValidator(_all_or_names),
]
Layers = Annotated[
    list[Annotated[int, Field(ge=-1000, lt=1000)]], Field(min_length=1, max_length=1000), AfterValidator(_each_once)
]


class LoraAdapter(Spec):
    """Low-rank adapters (arXiv:2106.09685) are trained beside frozen weights: `W + (alpha / rank) B A`, B = 0 at first.

    The reference is the model with its adapters off; there is one copy of the weights.
    """

    name: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0, le=1e6)
    targets: Targets = Field(
        "all-linear", description="which linear modules of the decoder layers, by name; all-linear: every one"
    )
    deliver: Literal["merged", "adapter"] = Field(
        "merged", description="a complete model, or the adapters alone (adapter_model.safetensors, adapter_config.json)"
    )


class StopWhen(Spec):
    """Stop once the request's gates hold on a subset, and deliver the best look instead of the last step.

    The gates are those that need no generated text. A look is inside the utility budget where every such gate that
    speaks of utility holds on it; of those the one with the most forgetting is delivered, the last among equals.
    """

    rows: int = Field(32, ge=1, le=10_000, description="rows of each set looked at, drawn by the seed")
    every: int | None = Field(
        None,
        ge=1,
        description="optimizer steps between looks; absent: as often as a tenth of the training's own cost allows",
    )
    budget: float = Field(
        0.9,
        ge=0,
        le=1,
        description="where no gate that a look can measure speaks of utility: the share of retain.probability to stay",
    )


class Training(Spec):
    """An optimizer step sees `batch_size` forget rows and as many retain rows, in as many forward passes as
    `micro_batch_tokens` makes necessary; the passes change speed and memory, not the update."""

    epochs: float | None = Field(
        None, gt=0, le=1000, description="passes over the forget set; 5 unless steps are given"
    )
    steps: int | None = Field(None, ge=1, le=1_000_000, description="optimizer steps, instead of epochs")
    batch_size: int = Field(4, ge=1, le=65_536, description="forget rows in one optimizer step")
    micro_batch_tokens: int = Field(
        4096,
        ge=16,
        le=10_000_000,
        description="tokens in one forward pass; padding counts where a model cannot pack rows",
    )
    schedule: Literal["linear", "constant"] = "linear"
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the rate rises from 0")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the global gradient norm; null: no clipping")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: matrix products in bf16, trained weights still in fp32"
    )
    adapter: Annotated[LoraAdapter, BeforeValidator(named)] | None = Field(
        None, description="train low-rank adapters (lora) instead of the weights themselves"
    )
    layers: Layers | None = Field(
        None, description="decoder layers to train, counted from 0, or from the end with -1; absent: every weight"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute each layer again in the backward pass instead of keeping what it computed"
    )
    processes: int | None = Field(
        None, ge=1, le=1024, description="processes that share the run, each with its own GPU where there are any"
    )
    sharding: Literal["ddp", "fsdp"] = Field(
        "ddp", description="with several processes: ddp: each holds the whole model; fsdp: a part of it"
    )
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints; absent: every two minutes")
    stop_when: Annotated[StopWhen, BeforeValidator(_gates)] | None = Field(
        None, description="stop as soon as the gates hold on a subset; `gates` is short for the defaults"
    )

    @model_validator(mode="after")
    def _one_length(self) -> "Training":
        if self.epochs is not None and self.steps is not None:
            raise conflict("steps", self.steps, "Give epochs or steps, not both.")
        return self
