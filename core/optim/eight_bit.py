"""AdamW with its state in eight bits (arXiv:2110.02861): bitsandbytes', on CUDA. Lethe does not depend on it."""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from core.errors import Problem, SpecError


def check_eight_bit(name: str) -> None:
    """Raises SpecError naming `optimizer.name` where there is no CUDA device or no bitsandbytes."""
    if not torch.cuda.is_available():
        missing = "this machine has no CUDA device"
    elif find_spec("bitsandbytes") is None:
        missing = "the package bitsandbytes is not installed (pip install bitsandbytes)"
    else:
        return
    message = f"'{name}' keeps its state on a GPU, through bitsandbytes, and {missing}. Use 'adamw' here."
    raise SpecError([Problem("optimizer.name", name, message)])


def adamw_8bit(parameters: Iterable[Any], **hyper: Any) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW8bit, which also sums the squares of its changes, and whose state holds tensors only."""
    check_eight_bit("adamw_8bit")
    AdamW8bit: Any = import_module("bitsandbytes.optim").AdamW8bit

    class Reporting(AdamW8bit):  # type: ignore[misc]
        """One parameter's old value is held at a time, not the whole model's."""

        squares: list[Tensor]

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            self.squares = []
            return super().step(closure)

        def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
            state, before = self.state[p], p.detach().clone()
            state["step"] = int(state["step"])
            super().update_step(group, p, gindex, pindex)
            # Checkpoints hold tensors.
            state["step"] = torch.tensor(state["step"])
            self.squares.append((p.detach() - before).double().square().sum())

        def report(self) -> dict[str, Tensor]:
            """As Walk's."""
            return {"update_sq": torch.stack(self.squares).sum()}

    return Reporting(parameters, **hyper)
