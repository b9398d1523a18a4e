"""PIPELINES: everything that the step benchmarks time, built from one Setup, and the process that each runs in.

A pipeline has a process of its own, so that its peak memory and its allocator's settings are its own too.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.baselines import CASES, RMU_RETAIN_WEIGHT, RMU_SCALE, careful, plain, rmu_layer, rmu_trains
from benchmarks.floor import Floor
from benchmarks.rows import Sets, Size, llama, step_rows
from core.environment import prepare
from core.events import StopFlag
from core.forward import choose_attention
from core.methods.inner import direction
from core.optim import OPTIMIZERS
from core.reference import Reference, observe
from core.spec.job import parse
from core.spec.optimizers import OPTIMIZERS as OPTIMIZER_SPECS
from core.train import Trainer

# Longer than any run of steps here: how many rows a reference is made for.
STEPS = 60


@dataclass(frozen=True)
class Setup:
    """What is run: one case on one model. `width`: what `plain` pads to; `lr` is the rate at every step."""

    case: str
    sets: Sets
    size: Size
    batch: int = 4
    width: int = 512
    threads: int = 2
    lr: float = 1e-5
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    autocast: bool = False  # matrix products in bf16


class Pipeline(Protocol):
    """Something with a step, which gives the weighted losses of the forget and the retain set."""

    def step(self, step: int, /) -> tuple[float, float]: ...


class Lethe:
    """Lethe's own trainer, the whole step in one forward pass. The one place that knows how a Trainer is made."""

    def __init__(self, setup: Setup, optimizer: str) -> None:
        prepare(setup.threads)
        self.model = llama(setup.size, setup.seed, setup.device, setup.dtype)
        choose_attention(self.model)
        if CASES[setup.case].forget == "rmu":
            for name, p in self.model.named_parameters():
                p.requires_grad_(rmu_trains(name, rmu_layer(setup.size.layers)))
        spec = parse(
            {
                "model": "model",
                "data": {name: {"source": "jsonl", "path": name} for name in setup.sets},
                "method": _method(setup),
                "optimizer": {"name": optimizer, "lr": setup.lr},
                "training": {
                    "steps": STEPS,
                    "batch_size": setup.batch,
                    "micro_batch_tokens": 1 << 20,
                    "schedule": "constant",
                    "warmup": 0,
                    "precision": "bf16" if setup.autocast else "fp32",
                },
                "seed": setup.seed,
            }
        )
        self._trainer = Trainer(spec, self.model, setup.sets, Reference(), STEPS)
        observed = self._trainer.objective
        needs = {name: observed.needs[name] for name in self._trainer.names}
        rows = {name: self._trainer.feed.rows_ever(name, STEPS) for name in self._trainer.names}
        observe(observed.reference, needs, self.model, setup.sets, rows, observed.layer, 4096, StopFlag())

    def step(self, step: int) -> tuple[float, float]:
        """One optimizer step."""
        self._trainer.step = step
        told = self._trainer.one_step(StopFlag())
        return told["forget_loss"], told["retain_loss"]


def _method(setup: Setup) -> dict[str, Any]:
    case = CASES[setup.case]
    if case.forget != "rmu":
        return {"name": case.forget, "retain": {"name": case.retain}}
    retain = {"name": case.retain, "weight": RMU_RETAIN_WEIGHT}
    return {"name": "rmu", "c": RMU_SCALE, "layer": rmu_layer(setup.size.layers), "retain": retain}


def baseline(make: Callable[..., Any], setup: Setup, optimizer: str) -> Any:
    """`plain` or `careful` on this setup."""
    torch.set_num_threads(setup.threads)
    model = llama(setup.size, setup.seed, setup.device, setup.dtype)
    padded = {"width": setup.width} if make is plain else {}
    rows_of = partial(step_rows, setup.sets, batch=setup.batch, seed=setup.seed)
    return make(
        model,
        rows_of,
        CASES[setup.case],
        optimizer=optimizer,
        lr=setup.lr,
        steer=steering(setup),
        autocast=setup.autocast,
        **padded,
    )


def steering(setup: Setup) -> Tensor:
    """RMU's unit vector, the one that Lethe draws for a request that names none: (hidden,)."""
    return direction(0, setup.size.hidden, torch.device(setup.device)).to(setup.dtype)


def floor(setup: Setup) -> Floor:
    """The step's matrix products alone."""
    torch.set_num_threads(setup.threads)
    return Floor(setup.size, CASES[setup.case], partial(step_rows, setup.sets, batch=setup.batch, seed=setup.seed))


class UpdateAlone:
    """An optimizer's update of every parameter of the model, from gradients that stay as they are."""

    def __init__(self, setup: Setup, optimizer: str) -> None:
        prepare(setup.threads)
        model = llama(setup.size, setup.seed, setup.device, setup.dtype)
        parameters = list(model.parameters())
        for p in parameters:
            p.grad = torch.randn_like(p).mul_(1e-3)
        self._optimizer = OPTIMIZERS[optimizer].build(parameters, OPTIMIZER_SPECS[optimizer]())

    def step(self, step: int) -> tuple[float, float]:  # noqa: ARG002
        """One update."""
        self._optimizer.step()
        return 0.0, 0.0


PIPELINES: dict[str, Callable[[Setup], Pipeline]] = {
    "plain": lambda s: baseline(plain, s, "sophia_g"),
    "careful": lambda s: baseline(careful, s, "adamw"),
    "lethe_sophia": lambda s: Lethe(s, "sophia_g"),
    "lethe_adamw": lambda s: Lethe(s, "adamw"),
    "lethe_bf16": lambda s: Lethe(replace(s, autocast=True), "adamw"),
    "floor": floor,
    "sophia_update": lambda s: UpdateAlone(s, "sophia_g"),
    "adamw_update": lambda s: UpdateAlone(s, "adamw"),
}


# Asks a pipeline's process for its peak memory instead of a step.
PEAK = "peak"


def serve(connection: Connection, name: str, setup: Setup) -> None:
    """Build a pipeline, then run the steps that come over the connection, until None; (seconds, losses) each go back,
    and for PEAK peak memory in MB: (whole process, what came after the imports)."""
    imported = _peak_mb()
    pipeline = PIPELINES[name](setup)
    connection.send("ready")
    while (step := connection.recv()) is not None:
        if step == PEAK:
            peak = _peak_mb()
            connection.send((peak, peak - imported))
            continue
        began = time.perf_counter()
        losses = pipeline.step(step)
        connection.send((time.perf_counter() - began, losses))


def _peak_mb() -> float:
    """Peak resident memory of this process; getrusage's may be that of the process it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
