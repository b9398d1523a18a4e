"""Sophia's update rule (arXiv:2305.14342) and the variant that SOUL's code runs (arXiv:2404.18239), as rules of the
walk.

Every product and sum is an operation of its own, as in update.c: `lerp` and `alpha=` may round once where that rounds
twice.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from core.optim.walk import Rule, Walk, local


def clipped_step_(theta: Tensor, m: Tensor, denominator: Tensor, rate: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """In place: `theta <- theta - lr clip(m / denominator, 1) - lr wd theta`; returns the change's L2 norm and how many
    coordinates were clipped. decay: lr wd."""
    ratio = (m / denominator).clamp_(-1, 1)
    # Of a clamped ratio only the clipped ones are whole numbers other than 0.
    clipped = torch.linalg.vector_norm(ratio.trunc(), 0)
    change = ratio.mul_(rate).add_(theta.float() * decay)
    theta.sub_(change)
    return torch.linalg.vector_norm(change), clipped


def sophia_(theta: Tensor, g: Tensor, m: Tensor, h: Tensor, k: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`m <- b1 m + (1-b1) g`, then a step of `clip(m / max(gamma h, eps), 1)`; h comes from `update_curvature`."""
    scale, b1, c1, gamma, eps, rate, decay = k
    m.mul_(b1).add_((g.float() * scale).mul_(c1))
    return clipped_step_(theta, m, torch.maximum(h * gamma, eps), rate, decay)


def _sophia_constants(group: dict[str, Any], _: int) -> Sequence[float]:
    b1, lr = group["betas"][0], group["lr"]
    return b1, 1 - b1, group["gamma"], group["eps"], lr, lr * group["weight_decay"]


def soul_(theta: Tensor, g: Tensor, m: Tensor, h: Tensor, k: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """SOUL's code: h from the squared training gradient at every step, momentum averaged twice a step,
    denominator `rho 5120 h + 1e-15`."""
    scale, b1, c1, b2, c2, rho, tiny, rate, decay = k
    g = g.float() * scale
    h.mul_(b2).add_((g * g).mul_(c2))
    m.mul_(b1).add_(g.mul_(c1))
    return clipped_step_(theta, m, (h * rho).add_(tiny), rate, decay)


def _soul_constants(group: dict[str, Any], _: int) -> Sequence[float]:
    (b1, b2), lr = group["betas"], group["lr"]
    # Averaging the same gradient twice is one average with the weight squared.
    b1 = b1 * b1
    return b1, 1 - b1, b2, 1 - b2, group["rho"] * 5120, 1e-15, lr, lr * group["weight_decay"]


SOPHIA = Rule("sophia", ("m", "h"), _sophia_constants, sophia_, clips=True)
SOUL = Rule("soul", ("m", "h"), _soul_constants, soul_, clips=True)


class Sophia(Walk):
    """A walk with momentum `m` and curvature `h`, which estimates of the Hessian's diagonal come into."""

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.96, 0.99),
        gamma: float,
        eps: float = 1e-12,
        weight_decay: float = 0.1,
        build: bool | None = None,
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, SOPHIA, build=build, **hyper)

    @torch.no_grad()
    def update_curvature(self, scale: float, square: bool = True) -> None:
        """`h <- b2 h + (1-b2) h_hat`. Gauss-Newton-Bartlett: `h_hat = B g g`, g the sampled-label gradient now in
        `.grad`, scale = B, the positions counted. Not squared (Hutchinson): `h_hat = scale * .grad`."""
        for group, p, state in self.each():
            b2, grad, h = group["betas"][1], local(p.grad).float(), local(state["h"])
            if square:
                h.mul_(b2).addcmul_(grad, grad, value=(1 - b2) * scale)
            else:
                h.mul_(b2).add_(grad, alpha=(1 - b2) * scale)


def soul(
    parameters: Iterable[Any],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    rho: float = 0.04,
    weight_decay: float = 0.1,
    build: bool | None = None,
) -> Walk:
    """What SOUL's published code does."""
    return Walk(parameters, SOUL, lr=lr, betas=betas, rho=rho, weight_decay=weight_decay, build=build)
