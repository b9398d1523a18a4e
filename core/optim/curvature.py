"""Estimates of the Hessian's diagonal. Gauss-Newton-Bartlett: the squared gradient against the model's own labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Curvature:
    """When the estimate is refreshed (every so many steps), on whose answer positions, and how an optimizer takes in
    the sampled-label gradients that lie in `.grad`, given the number of positions."""

    every: int
    on: Literal["retain", "forget", "both"]
    update: Callable[[Any, int], None]

    def due(self, step: int) -> bool:
        """Whether the step (from 0) begins with a new estimate."""
        return step % self.every == 0

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets whose positions count."""
        return ("forget", "retain") if self.on == "both" else (self.on,)


def sampled_label_loss(logits: Tensor, positions: int, uniform: Tensor) -> Tensor:
    """Cross-entropy against labels drawn from the model's own softmax, over `positions` (B) of the whole step.

    The gradient g of the step's sum gives the estimate `B g*g` of the Gauss-Newton diagonal (arXiv:2305.14342,
    section 2.3). logits: (tokens, vocab); uniform: (tokens,), the random numbers in [0, 1) that the labels come from.
    """
    with torch.no_grad():
        reached = torch.softmax(logits, dim=-1).cumsum(dim=-1)
        labels = torch.searchsorted(reached, (uniform * reached[:, -1])[:, None], right=True).squeeze(1)
        labels.clamp_(max=logits.shape[1] - 1)
    return cross_entropy(logits, labels, reduction="sum") / positions
