"""OPTIMIZERS: how each optimizer of the spec is built, and which curvature estimate it wants, if any.

The loop never asks what kind it has: first-order and second-order differ only in their row here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from core.optim.curvature import Curvature
from core.optim.eight_bit import adamw_8bit, check_eight_bit
from core.optim.first_order import adamw, sgd
from core.optim.muon import Muon
from core.optim.sophia import Sophia, soul
from core.spec import optimizers as spec

Named = Sequence[tuple[str, Parameter]]


@dataclass(frozen=True)
class Row:
    """`make` builds the optimizer from named parameters; `curvature` says when and on which sets its Hessian estimate
    is refreshed; `check` raises SpecError where this machine cannot run it; `clips`: it clips coordinates."""

    make: Callable[[Named, Any], torch.optim.Optimizer]
    curvature: Callable[[Any], Curvature] | None = None
    check: Callable[[str], None] | None = None
    clips: bool = False

    def build(self, parameters: Iterable[Parameter | tuple[str, Parameter]], s: Any) -> torch.optim.Optimizer:
        """The optimizer that a spec asks for. Parameters without names are no hidden layer's to Muon."""
        return self.make([p if isinstance(p, tuple) else ("", p) for p in parameters], s)

    def report(self, optimizer: Any, total: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """What the last step did, as 0-dim fp64 tensors on the device that nobody waited for: `update_norm`, the L2
        norm of the change of the weights, weight decay included; `clip_fraction`, the share of coordinates clipped.

        `total` adds a tensor up over processes, where each of them holds a shard of the weights.
        """
        sums = optimizer.report()
        values = torch.stack(list(sums.values()))
        done = dict(zip(sums, total(values) if total else values, strict=True))
        told = {"update_norm": done["update_sq"].sqrt()}
        return told | ({"clip_fraction": done["clipped"] / done["counted"].clamp(min=1)} if self.clips else {})


def check_available(s: Any) -> None:
    """Raises SpecError naming `optimizer.name` where this machine cannot run the optimizer that a spec asks for."""
    check = OPTIMIZERS[s.name].check
    if check is not None:
        check(s.name)


def fold_clip(optimizer: torch.optim.Optimizer, factor: Tensor) -> None:
    """Scale the gradients of the next step by `factor`, 0-dim, without a pass over them where the optimizer can."""
    for group in optimizer.param_groups:
        if "grad_scale" in group:
            group["grad_scale"] = factor
        else:
            torch._foreach_mul_([p.grad for p in group["params"] if p.grad is not None], factor)


def _plain(parameters: Named) -> list[Parameter]:
    return [p for _, p in parameters]


def _adamw(parameters: Named, s: spec.AdamW) -> torch.optim.Optimizer:
    return adamw(_plain(parameters), lr=s.lr, betas=s.betas, eps=s.eps, weight_decay=s.weight_decay)


def _adamw_8bit(parameters: Named, s: spec.AdamW8bit) -> torch.optim.Optimizer:
    return adamw_8bit(_plain(parameters), lr=s.lr, betas=s.betas, eps=s.eps, weight_decay=s.weight_decay)


def _sgd(parameters: Named, s: spec.Sgd) -> torch.optim.Optimizer:
    return sgd(_plain(parameters), lr=s.lr, momentum=s.momentum, nesterov=s.nesterov, weight_decay=s.weight_decay)


def _muon(parameters: Named, s: spec.Muon) -> torch.optim.Optimizer:
    return Muon(
        parameters,
        lr=s.lr,
        momentum=s.momentum,
        nesterov=s.nesterov,
        betas=s.betas,
        eps=s.eps,
        weight_decay=s.weight_decay,
    )


def _sophia(parameters: Named, s: spec.SophiaG | spec.SophiaH) -> torch.optim.Optimizer:
    decay = s.weight_decay
    return Sophia(_plain(parameters), lr=s.lr, betas=s.betas, gamma=s.gamma, eps=s.eps, weight_decay=decay)


def _soul(parameters: Named, s: spec.Soul) -> torch.optim.Optimizer:
    return soul(_plain(parameters), lr=s.lr, betas=s.betas, rho=s.rho, weight_decay=s.weight_decay)


def _gauss_newton(s: spec.SophiaG) -> Curvature:
    return Curvature(s.every, s.curvature_on, Sophia.update_curvature, "gauss_newton_bartlett")


def _hutchinson(s: spec.SophiaH) -> Curvature:
    return Curvature(s.every, s.curvature_on, partial(Sophia.update_curvature, square=False), "hutchinson")


OPTIMIZERS: dict[str, Row] = {
    "sophia_g": Row(_sophia, _gauss_newton, clips=True),
    "sophia_h": Row(_sophia, _hutchinson, clips=True),
    "soul": Row(_soul, clips=True),
    "adamw": Row(_adamw),
    "sgd": Row(_sgd),
    "muon": Row(_muon),
    "adamw_8bit": Row(_adamw_8bit, check=check_eight_bit),
}
