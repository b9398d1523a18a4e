"""Which optimizer takes the steps. First-order and second-order differ only in this row of a request."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from core.spec.base import Spec, conflict

Rate = Annotated[float, Field(gt=0, le=10, description="peak learning rate")]
Decay = Annotated[float, Field(ge=0, le=10, description="decoupled weight decay")]
Beta = Annotated[float, Field(ge=0, lt=1)]
Eps = Annotated[float, Field(gt=0, le=1)]
Gamma = Annotated[
    float, Field(gt=0, le=1e6, description="scale of the curvature in the denominator; larger clips less")
]
Every = Annotated[int, Field(ge=1, le=10_000, description="steps between two curvature estimates")]
CurvatureOn = Annotated[Literal["retain", "forget", "both"], Field(description="whose answers the curvature is of")]


class SophiaG(Spec):
    """Sophia with the Gauss-Newton-Bartlett estimate of the curvature, labels sampled from the model itself."""

    citation: ClassVar[str] = "arXiv:2305.14342"
    name: Literal["sophia_g"] = "sophia_g"
    lr: Rate = 1e-5
    betas: tuple[Beta, Beta] = (0.96, 0.99)
    gamma: Gamma = 0.05
    eps: Eps = 1e-12
    weight_decay: Decay = 0.1
    every: Every = 10
    curvature_on: CurvatureOn = "retain"


class SophiaH(Spec):
    """Sophia with Hutchinson's estimate of the curvature, a random probe times the Hessian's product with it. Needs a
    second derivative, so that an estimate costs several steps' time and attention runs without its fused kernels."""

    citation: ClassVar[str] = "arXiv:2305.14342"
    name: Literal["sophia_h"] = "sophia_h"
    lr: Rate = 1e-5
    betas: tuple[Beta, Beta] = (0.96, 0.99)
    gamma: Gamma = 0.01
    eps: Eps = 1e-12
    weight_decay: Decay = 0.1
    every: Every = 10
    curvature_on: CurvatureOn = "retain"


class Soul(Spec):
    """What SOUL's published code does, kept to reproduce its runs: squared gradients for curvature at every step, the
    momentum average applied twice. Nearly every coordinate is clipped at large-model gradient sizes: sign momentum."""

    citation: ClassVar[str] = "arXiv:2404.18239"
    name: Literal["soul"] = "soul"
    lr: Rate = 1e-5
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    rho: float = Field(0.04, gt=0, le=1e6)
    weight_decay: Decay = 0.1


class _Adam(Spec):
    """What AdamW takes, in whatever format it keeps its state."""

    lr: Rate = 1e-5
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Eps = 1e-8
    weight_decay: Decay = 0.01


class AdamW(_Adam):
    """Adam with decoupled weight decay, torch's definition of it."""

    citation: ClassVar[str] = "arXiv:1711.05101"
    name: Literal["adamw"] = "adamw"


class Sgd(Spec):
    """Stochastic gradient descent, torch's definition of it. Needs far larger rates than the others."""

    name: Literal["sgd"] = "sgd"
    lr: Rate = 1e-2
    momentum: Beta = 0.0
    nesterov: bool = Field(False, description="look ahead along the momentum, which must not be 0")
    weight_decay: float = Field(0.0, ge=0, le=10, description="weight decay, added to the gradient")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Sgd":
        if self.nesterov and self.momentum == 0:
            raise conflict("nesterov", True, "nesterov needs a momentum above 0 (got 0).")
        return self


class Muon(Spec):
    """Momentum made orthogonal, torch's Muon, for the matrices of the hidden layers; AdamW, at the same rate, for
    embeddings, head, norms and biases."""

    citation: ClassVar[str] = "arXiv:2502.16982"
    name: Literal["muon"] = "muon"
    lr: Rate = 1e-5
    momentum: Beta = 0.95
    nesterov: bool = True
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's")
    eps: float = Field(1e-8, gt=0, le=1, description="AdamW's")
    weight_decay: Decay = 0.1


class AdamW8bit(_Adam):
    """AdamW with its state in eight bits, a quarter of the memory. Needs CUDA and the package bitsandbytes."""

    citation: ClassVar[str] = "arXiv:2110.02861"
    name: Literal["adamw_8bit"] = "adamw_8bit"


OPTIMIZERS: dict[str, type[Spec]] = {
    "sophia_g": SophiaG,
    "sophia_h": SophiaH,
    "soul": Soul,
    "adamw": AdamW,
    "sgd": Sgd,
    "muon": Muon,
    "adamw_8bit": AdamW8bit,
}


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Optimizer = Annotated[
    SophiaG | SophiaH | Soul | AdamW | Sgd | Muon | AdamW8bit, Field(discriminator="name"), BeforeValidator(_named)
]
