"""Sophia's update rule (arXiv:2305.14342), and the variant that SOUL's code runs (arXiv:2404.18239).

Each parameter is walked in pieces that stay in cache, so that the update reads and writes memory once.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

# 2^16 fp32 numbers of four streams fit the second-level cache of current processors.
_PIECE = 1 << 16

Update = Callable[[Tensor, Tensor, Tensor, Tensor, dict[str, Any]], Tensor]


def clipped_step_(theta: Tensor, m: Tensor, denominator: Tensor, lr: float, weight_decay: float) -> Tensor:
    """In place: `theta <- theta (1 - lr wd) - lr clip(m / denominator, 1)`; returns how many were clipped."""
    ratio = m / denominator
    clipped = (ratio.abs() >= 1).sum()
    theta.mul_(1 - lr * weight_decay).sub_(ratio.clamp_(-1, 1), alpha=lr)
    return clipped


def sophia_(theta: Tensor, g: Tensor, m: Tensor, h: Tensor, group: dict[str, Any]) -> Tensor:
    """`m <- b1 m + (1-b1) g`, then a step of `clip(m / max(gamma h, eps), 1)`; h comes from `update_curvature`."""
    m.lerp_(g, 1 - group["betas"][0])
    return clipped_step_(theta, m, (h * group["gamma"]).clamp_(min=group["eps"]), group["lr"], group["weight_decay"])


def soul_(theta: Tensor, g: Tensor, m: Tensor, h: Tensor, group: dict[str, Any]) -> Tensor:
    """SOUL's code: h from the squared training gradient at every step, momentum averaged twice a step,
    denominator `rho 5120 h + 1e-15`."""
    b1, b2 = group["betas"]
    h.mul_(b2).addcmul_(g, g, value=1 - b2)
    # Averaging the same gradient twice is one average with the weight squared.
    m.lerp_(g, 1 - b1 * b1)
    return clipped_step_(theta, m, h * (group["rho"] * 5120) + 1e-15, group["lr"], group["weight_decay"])


class Sophia(torch.optim.Optimizer):
    """A walk over the parameters that applies one of the updates above. State: momentum `m` and curvature `h`.

    Parameters without a gradient are left alone.
    """

    def __init__(self, parameters: Iterable[Parameter], update: Update, **hyper: Any) -> None:
        super().__init__(parameters, hyper)
        self._update = update
        self._clipped: list[Tensor] = []
        self._counted = 0

    @property
    def clip_fraction(self) -> float:
        """Share of coordinates whose update was clipped in the last step."""
        return float(torch.stack(self._clipped).sum()) / self._counted if self._clipped else 0.0

    def _each(self) -> Iterator[tuple[dict[str, Any], Parameter, Tensor, dict[str, Tensor]]]:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state["m"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
                        state["h"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
                    yield group, p, p.grad, state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients in place."""
        assert closure is None, "Sophia takes no closure"
        self._clipped, self._counted = [], 0
        for group, p, grad, state in self._each():
            streams = [s.view(-1) for s in (p.detach(), grad.contiguous(), state["m"], state["h"])]
            size = _PIECE if p.device.type == "cpu" else p.numel()
            for theta, g, m, h in zip(*(s.split(size) for s in streams), strict=True):
                self._clipped.append(self._update(theta, g, m, h, group))
            self._counted += p.numel()

    @torch.no_grad()
    def update_curvature(self, scale: float) -> None:
        """`h <- b2 h + (1-b2) scale g*g`, g the sampled-label gradient now in `.grad`, scale = B, positions counted."""
        for group, _, grad, state in self._each():
            b2 = group["betas"][1]
            state["h"].mul_(b2).addcmul_(grad, grad, value=(1 - b2) * scale)
