"""Which optimizer takes the steps. First-order and second-order differ only in this row of a request."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from core.spec.base import Spec

Rate = Annotated[float, Field(gt=0, le=10, description="peak learning rate")]
Decay = Annotated[float, Field(ge=0, le=10, description="decoupled weight decay")]
Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Spec):
    """Adam with decoupled weight decay, torch's fused implementation."""

    citation: ClassVar[str] = "arXiv:1711.05101"
    name: Literal["adamw"] = "adamw"
    lr: Rate = 1e-5
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0, le=1)
    weight_decay: Decay = 0.01


class SophiaG(Spec):
    """Sophia with the Gauss-Newton-Bartlett estimate of the curvature, labels sampled from the model itself."""

    citation: ClassVar[str] = "arXiv:2305.14342"
    name: Literal["sophia_g"] = "sophia_g"
    lr: Rate = 1e-5
    betas: tuple[Beta, Beta] = (0.96, 0.99)
    gamma: float = Field(0.05, gt=0, le=1e6, description="scale of the curvature in the denominator; larger clips less")
    eps: float = Field(1e-12, gt=0, le=1)
    weight_decay: Decay = 0.1
    every: int = Field(10, ge=1, le=10_000, description="steps between two curvature estimates")
    curvature_on: Literal["retain", "forget", "both"] = Field("retain", description="whose answers the curvature is of")


class Soul(Spec):
    """What SOUL's published code does, kept to reproduce its runs: squared gradients for curvature at every step, the
    momentum average applied twice. Nearly every coordinate is clipped at large-model gradient sizes: sign momentum."""

    citation: ClassVar[str] = "arXiv:2404.18239"
    name: Literal["soul"] = "soul"
    lr: Rate = 1e-5
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    rho: float = Field(0.04, gt=0, le=1e6)
    weight_decay: Decay = 0.1


OPTIMIZERS: dict[str, type[Spec]] = {"adamw": AdamW, "sophia_g": SophiaG, "soul": Soul}


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Optimizer = Annotated[AdamW | SophiaG | Soul, Field(discriminator="name"), BeforeValidator(_named)]
