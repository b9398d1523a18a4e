"""Estimates of the Hessian's diagonal (arXiv:2305.14342, section 2.3). Gauss-Newton-Bartlett: the squared gradient
against the model's own labels. Hutchinson: a random probe times the Hessian's product with it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Curvature:
    """When the estimate is refreshed (every so many steps), on whose answer positions, and how an optimizer takes in
    what lies in `.grad`, summed over micro-batches and processes and not clipped, by `update(optimizer, scale)`.

    `gauss_newton_bartlett`: the gradient of `sampled_label_loss`; scale is B, the positions of the whole step.
    `hutchinson`: the estimate itself, `u * hessian_vector(loss, parameters, u)` with `u = probe(...)`; scale is 1.
    """

    every: int
    on: Literal["retain", "forget", "both"]
    update: Callable[[Any, float], None]
    estimate: Literal["gauss_newton_bartlett", "hutchinson"] = "gauss_newton_bartlett"

    def due(self, step: int) -> bool:
        """Whether the step (from 0) begins with a new estimate."""
        return step % self.every == 0

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets whose positions count."""
        return ("forget", "retain") if self.on == "both" else (self.on,)


def sampled_label_loss(logits: Tensor, positions: int, uniform: Tensor) -> Tensor:
    """Cross-entropy against labels drawn from the model's own softmax, over `positions` (B) of the whole step.

    The gradient g of the step's sum gives the estimate `B g*g` of the Gauss-Newton diagonal.
    """
    return sampled_label_nll(logits, uniform).sum() / positions


def sampled_label_nll(logits: Tensor, uniform: Tensor) -> Tensor:
    """-log p of a label drawn from the model's own softmax, for each token: (tokens,).

    logits: (tokens, vocab); uniform: (tokens,), the random numbers in [0, 1) that the labels come from.
    """
    with torch.no_grad():
        reached = torch.softmax(logits, dim=-1).cumsum(dim=-1)
        labels = torch.searchsorted(reached, (uniform * reached[:, -1])[:, None], right=True).squeeze(1)
        labels.clamp_(max=logits.shape[1] - 1)
    return cross_entropy(logits, labels, reduction="none")


def probe(parameters: Sequence[Parameter], generator: torch.Generator) -> list[Tensor]:
    """Hutchinson's u: standard normal, like each parameter, drawn in order. One generator state gives one probe: every
    micro-batch and every process of a step can use the same. The generator is on the parameters' device."""
    return [
        torch.randn(p.shape, generator=generator, device=p.device, dtype=torch.float32).to(p.dtype) for p in parameters
    ]


def hessian_vector(loss: Tensor, parameters: Sequence[Parameter], u: Sequence[Tensor]) -> list[Tensor]:
    """`H u`, H this loss's Hessian: the gradient of `u . grad(loss)`, a tensor for each parameter.

    It is linear in the loss, so that micro-batches whose losses sum to the step's have products that sum to the step's.
    The forward pass must have run inside `twice_differentiable()`.
    """
    # With `allow_unused` there may be None among them, which torch's types do not say.
    grads: Sequence[Tensor | None] = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    along = [(g * v).sum() for g, v in zip(grads, u, strict=True) if g is not None and g.requires_grad]
    if not along:
        return [torch.zeros_like(p) for p in parameters]
    found: Sequence[Tensor | None] = torch.autograd.grad(torch.stack(along).sum(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if t is None else t for p, t in zip(parameters, found, strict=True)]


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by plain matrix products: the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
