"""AdamW (arXiv:1711.05101) and SGD, torch's definitions of both, as rules of the walk.

Every product and sum is an operation of its own, as in update.c: `lerp` and `alpha=` may round once where that rounds
twice.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from core.optim.walk import Rule, Walk


def adamw_(theta: Tensor, g: Tensor, m: Tensor, v: Tensor, k: Sequence[Tensor]) -> tuple[Tensor, None]:
    """`m <- b1 m + (1-b1) g`, `v <- b2 v + (1-b2) g g`, both corrected for their start at zero, then
    `theta <- theta - lr (m / (sqrt(v) + eps) + wd theta)`."""
    scale, b1, c1, b2, c2, root, eps, rate, decay = k
    g = g.float() * scale
    v.mul_(b2).add_((g * g).mul_(c2))
    m.mul_(b1).add_(g.mul_(c1))
    change = (m / _sqrt(v).mul_(root).add_(eps)).mul_(rate).add_(theta.float() * decay)
    theta.sub_(change)
    return torch.linalg.vector_norm(change), None


def _sqrt(v: Tensor) -> Tensor:
    # MKL's square root in fp32 is a unit in the last place off for every fifth number, and C's is not.
    return v.double().sqrt_().float() if v.device.type == "cpu" else v.sqrt()


def _adamw_constants(group: dict[str, Any], step: int) -> Sequence[float]:
    (b1, b2), lr = group["betas"], group["lr"]
    root, rate = 1 / math.sqrt(1 - b2**step), lr / (1 - b1**step)
    return b1, 1 - b1, b2, 1 - b2, root, group["eps"], rate, lr * group["weight_decay"]


def sgd_(theta: Tensor, g: Tensor, k: Sequence[Tensor]) -> tuple[Tensor, None]:
    """`theta <- theta - lr (g + wd theta)`."""
    scale, decay, rate, _ = k
    change = (g.float() * scale).add_(theta.float() * decay).mul_(rate)
    theta.sub_(change)
    return torch.linalg.vector_norm(change), None


def sgd_momentum_(theta: Tensor, g: Tensor, m: Tensor, k: Sequence[Tensor]) -> tuple[Tensor, None]:
    """`m <- momentum m + g + wd theta`, `theta <- theta - lr m`."""
    scale, decay, rate, momentum = k
    m.mul_(momentum).add_((g.float() * scale).add_(theta.float() * decay))
    change = m * rate
    theta.sub_(change)
    return torch.linalg.vector_norm(change), None


def sgd_nesterov_(theta: Tensor, g: Tensor, m: Tensor, k: Sequence[Tensor]) -> tuple[Tensor, None]:
    """The same m; `theta <- theta - lr (g + wd theta + momentum m)`."""
    scale, decay, rate, momentum = k
    g = (g.float() * scale).add_(theta.float() * decay)
    m.mul_(momentum).add_(g)
    change = g.add_(m * momentum).mul_(rate)
    theta.sub_(change)
    return torch.linalg.vector_norm(change), None


def _sgd_constants(group: dict[str, Any], _: int) -> Sequence[float]:
    return group["weight_decay"], group["lr"], group["momentum"]


ADAMW = Rule("adamw", ("exp_avg", "exp_avg_sq"), _adamw_constants, adamw_, counts_steps=True)
SGD = Rule("sgd", (), _sgd_constants, sgd_)
SGD_MOMENTUM = Rule("sgd_momentum", ("momentum_buffer",), _sgd_constants, sgd_momentum_)
SGD_NESTEROV = Rule("sgd_nesterov", ("momentum_buffer",), _sgd_constants, sgd_nesterov_)


def adamw(
    parameters: Iterable[Any],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    build: bool | None = None,
) -> Walk:
    """Adam with decoupled weight decay."""
    return Walk(parameters, ADAMW, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, build=build)


def sgd(
    parameters: Iterable[Any],
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    build: bool | None = None,
) -> Walk:
    """Stochastic gradient descent; weight decay is L2, in the gradient, as in torch's. Without momentum no state."""
    rule = SGD if momentum == 0 else SGD_NESTEROV if nesterov else SGD_MOMENTUM
    return Walk(parameters, rule, lr=lr, momentum=momentum, weight_decay=weight_decay, build=build)
