"""OPTIMIZERS: how each optimizer of the spec is built, and which curvature estimate it wants, if any.

The loop never asks what kind it has: first-order and second-order differ only in their row here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter

from core.optim.curvature import Curvature
from core.optim.sophia import Sophia, sophia_, soul_
from core.spec import optimizers as spec


@dataclass(frozen=True)
class Row:
    """`build` makes the optimizer; `curvature` says when and on which sets its Hessian estimate is refreshed;
    `clip_fraction` reads the share of coordinates clipped in the last step, for optimizers that clip."""

    build: Callable[[Iterable[Parameter], Any], torch.optim.Optimizer]
    curvature: Callable[[Any], Curvature] | None = None
    clip_fraction: Callable[[Any], float] | None = None


def _adamw(parameters: Iterable[Parameter], s: spec.AdamW) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, s.lr, s.betas, s.eps, s.weight_decay, fused=True)


def _sophia_g(parameters: Iterable[Parameter], s: spec.SophiaG) -> torch.optim.Optimizer:
    return Sophia(parameters, sophia_, lr=s.lr, betas=s.betas, gamma=s.gamma, eps=s.eps, weight_decay=s.weight_decay)


def _soul(parameters: Iterable[Parameter], s: spec.Soul) -> torch.optim.Optimizer:
    return Sophia(parameters, soul_, lr=s.lr, betas=s.betas, rho=s.rho, weight_decay=s.weight_decay)


def _clipped(optimizer: Sophia) -> float:
    return optimizer.clip_fraction


OPTIMIZERS: dict[str, Row] = {
    "adamw": Row(_adamw),
    "sophia_g": Row(_sophia_g, lambda s: Curvature(s.every, s.curvature_on, Sophia.update_curvature), _clipped),
    "soul": Row(_soul, clip_fraction=_clipped),
}
