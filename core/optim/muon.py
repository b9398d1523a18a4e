"""Muon (kellerjordan.github.io/posts/muon, arXiv:2502.16982): torch's, for the matrices of the hidden layers; AdamW for
embeddings, head, norms and biases. One optimizer to the outside, with one state and one list of groups.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from core.optim.first_order import adamw
from core.optim.walk import local


def is_hidden_matrix(name: str, p: Tensor) -> bool:
    """Whether Muon is meant for it: a matrix inside a numbered layer. Embeddings, position tables and heads lie outside
    the layers in every family."""
    return p.ndim == 2 and re.search(r"\.\d+\.", f".{name}.") is not None and "embed" not in name


class Muon(torch.optim.Optimizer):
    """`param_groups[0]` are the matrices, `param_groups[1]` the rest. Both parts take the same learning rate: Muon's is
    rescaled to AdamW's typical size of step (arXiv:2502.16982, section 2.2)."""

    def __init__(
        self,
        parameters: Sequence[tuple[str, Parameter]],
        *,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        matrices = [p for name, p in parameters if is_hidden_matrix(name, p)]
        rest = [p for name, p in parameters if not is_hidden_matrix(name, p)]
        self._muon = torch.optim.Muon(
            [{"params": matrices}], lr, weight_decay, momentum, nesterov, adjust_lr_fn="match_rms_adamw"
        )
        self._rest = adamw([{"params": rest}], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self._squares: list[Tensor] = []
        groups = [*self._muon.param_groups, *self._rest.param_groups]
        groups[0]["grad_scale"] = 1.0
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients in place, scaled as `group["grad_scale"]` says."""
        assert closure is None, "Muon takes no closure"
        first, *others = self.param_groups
        # Whoever loads a state dict replaces state and groups, so they are handed over anew at each step.
        self._muon.state = self._rest.state = self.state
        self._rest.param_groups = others
        self._squares = []
        for p in first["params"]:
            if p.grad is not None:
                _scale_(p.grad, first["grad_scale"])
                before = p.detach().clone()
                self._muon.param_groups = [{**first, "params": [p]}]
                self._muon.step()
                self._squares.append(local(p - before).double().square().sum())
        first["grad_scale"] = 1.0
        self._rest.step()

    def report(self) -> dict[str, Tensor]:
        """As Walk's: `update_sq`, over both parts."""
        rest = self._rest.report()["update_sq"]
        return {"update_sq": rest + torch.stack(self._squares).sum() if self._squares else rest}


def _scale_(grad: Tensor, scale: Any) -> None:
    if isinstance(scale, Tensor) or scale != 1.0:
        grad.mul_(scale)
