"""The walk that every elementwise optimizer is: one pass over parameter, gradient and state, with the sums an event
tells made on the way. A rule says what is done to them; on the CPU large models take the rule from update.c, small ones
(and machines without a compiler) from torch in pieces that stay in cache, and both leave the same bits.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from core.device import sent
from core.optim import native

# 2^18 fp32 numbers of four streams: fewer and the calls cost more than the cache misses do.
_PIECE = 1 << 18
# Weights from which building pays: a quarter second on the CPU; torch.compile, on CUDA, takes some twenty.
_BUILD_FROM = {"cpu": 1 << 20, "cuda": 1 << 28}


@dataclass(frozen=True)
class Rule:
    """An update rule. `name` is its function in update.c; `slots` the state it keeps, as large as the parameter.

    `constants(group, step)` are the numbers it needs, step from 1; the walk puts the gradient's scale before them, as
    k[0]. `update(theta, g, *slots, k)` changes parameter and slots in place, `theta <- theta - change`; returns the L2
    norm of the change and, where the rule `clips`, the number of clipped coordinates, else None. k: 0-dim tensors.
    """

    name: str
    slots: tuple[str, ...]
    constants: Callable[[dict[str, Any], int], Sequence[float]]
    update: Callable[..., tuple[Tensor, Tensor | None]]
    counts_steps: bool = False
    clips: bool = False


class Walk(torch.optim.Optimizer):
    """An optimizer that applies a rule to each parameter that has a gradient; others are left alone.

    State: the rule's slots in fp32, and "step", a 0-dim CPU tensor, where the rule counts steps. The next step reads
    gradients times `group["grad_scale"]` (a number or a 0-dim tensor), which then is 1 again. A parameter may be a
    DTensor: each process updates its own shard, and `report` sums over that shard.
    """

    def __init__(self, parameters: Iterable[Any], rule: Rule, *, build: bool | None = None, **hyper: Any) -> None:
        """`build`: use built code (True), torch in pieces (False), or whatever pays for this many weights (None)."""
        super().__init__(parameters, {**hyper, "grad_scale": 1.0})
        self.rule = rule
        self._build = build
        self._sums: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._clips: list[Tensor] = []
        self._counted = 0
        self._copied: tuple[Any, tuple[Tensor, ...]] = (None, ())

    def each(self) -> Iterator[tuple[dict[str, Any], Parameter, dict[str, Tensor]]]:
        """Every parameter that has a gradient, with its group and its state, which starts at zero."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    for slot in self.rule.slots:
                        if slot not in state:
                            # Averages of small squares need more digits than bf16 has.
                            state[slot] = torch.zeros_like(
                                p, dtype=torch.float32, memory_format=torch.contiguous_format
                            )
                    if self.rule.counts_steps:
                        # A restored checkpoint may have put it on the accelerator, where reading it would wait.
                        state["step"] = state["step"].cpu() if "step" in state else torch.zeros(())
                    yield group, p, state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients in place."""
        assert closure is None, "a walk takes no closure"
        self._sums, self._norms, self._clips, self._counted = [], [], [], 0
        self._copied = (None, ())
        numel = sum(local(p).numel() for group in self.param_groups for p in group["params"])
        for group, p, state in self.each():
            step = 0
            if self.rule.counts_steps:
                state["step"] += 1
                step = int(state["step"])
            assert local(p).is_contiguous(), "an update of a copy would be lost"
            streams = [flat(p), flat(p.grad), *(flat(state[slot]) for slot in self.rule.slots)]
            self._update(streams, group["grad_scale"], self.rule.constants(group, step), self._builds(streams, numel))
            self._counted += streams[0].numel()
        for group in self.param_groups:
            group["grad_scale"] = 1.0

    def _builds(self, streams: Sequence[Tensor], numel: int) -> bool:
        device = streams[0].device.type
        if not (numel >= _BUILD_FROM.get(device, numel + 1) if self._build is None else self._build):
            return False
        if device == "cpu":
            return all(s.dtype == torch.float32 for s in streams) and native.library() is not None
        return device == "cuda" and native.compiler() is not None

    def _update(self, streams: list[Tensor], scale: float | Tensor, constants: Sequence[float], build: bool) -> None:
        device, numel = streams[0].device, streams[0].numel()
        if build and device.type == "cpu":
            sums = torch.empty(native.rows(numel), 2, dtype=torch.float64)
            native.update(self.rule.name, streams, [float(scale), *constants], sums)
            self._sums.append(sums)
            return
        k = self._on_device(scale, tuple(constants), device)
        update = _compiled(self.rule.update) if build else self.rule.update
        for piece in zip(*(s.split(_PIECE if device.type == "cpu" else max(1, numel)) for s in streams), strict=True):
            norm, clipped = update(*piece, k)
            self._norms.append(norm)
            if clipped is not None:
                self._clips.append(clipped)

    def _on_device(
        self, scale: float | Tensor, constants: tuple[float, ...], device: torch.device
    ) -> tuple[Tensor, ...]:
        """The rule's numbers as 0-dim tensors: copied to the device once a step, not once a parameter."""
        key = (id(scale), constants, device)
        if self._copied[0] != key:
            k = sent(torch.tensor([1.0, *constants]), device)
            k[0] = scale
            self._copied = (key, k.unbind())
        return self._copied[1]

    def report(self) -> dict[str, Tensor]:
        """Sums of the last step over this process's shards, 0-dim fp64 tensors on the device that nobody waited for:
        `update_sq`, of squared changes, weight decay included, before they are rounded to the weights' type; for rules
        that clip `clipped` and `counted` too."""
        device = next((local(p).device for group in self.param_groups for p in group["params"]), torch.device("cpu"))
        update_sq, clipped = torch.zeros(2, dtype=torch.float64, device=device)
        if self._norms:
            update_sq = update_sq + torch.stack(self._norms).double().square().sum()
        if self._clips:
            clipped = clipped + torch.stack(self._clips).double().sum()
        if self._sums:
            squares, clips = torch.cat(self._sums).sum(0)
            update_sq, clipped = update_sq + squares, clipped + clips
        if not self.rule.clips:
            return {"update_sq": update_sq}
        counted = torch.full((), self._counted, dtype=torch.float64, device=device)
        return {"update_sq": update_sq, "clipped": clipped, "counted": counted}


def local(t: Any) -> Tensor:
    """This process's shard of a DTensor; of a plain tensor, itself."""
    t = t.detach()
    return t.to_local() if hasattr(t, "to_local") else t  # type: ignore[no-any-return]


def flat(t: Any) -> Tensor:
    """The shard's numbers in a row. A parameter's and a state's are shared with it; a gradient's may be a copy."""
    return local(t).contiguous().view(-1)


@functools.cache
def _compiled(update: Callable[..., Any]) -> Callable[..., Any]:
    """Built once for tensors of any length."""
    return torch.compile(update, dynamic=True, fullgraph=True)
