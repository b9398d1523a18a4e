"""The loop: one step after the other, curvature where the optimizer asks for it, events.

Everything that varies from step to step is a function of the seed and the step, so a resumed run needs only weights,
optimizer state and the step's number to go on bit for bit.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.data.feed import Feed
from core.errors import Diverged, Stopped
from core.events import Emit, StopFlag
from core.forward import collate, packs
from core.objective import ALTERNATIVE, Objective, Pass, sets_of
from core.optim import OPTIMIZERS, fold_clip
from core.optim.schedule import rate_factor
from core.parallel.processes import ALONE, Processes
from core.precision import autocast
from core.reference import Reference
from core.refresh import refresh
from core.retain_weight import RetainWeight
from core.spec.job import JobSpec
from core.tokens import Example

_SAVE_SECONDS = 120.0


@dataclass
class Trainer:
    """A run's training state. `step` counts finished optimizer steps."""

    spec: JobSpec
    model: PreTrainedModel
    sets: Mapping[str, Sequence[Example]]  # forget (or the refusals in its place), alternative, retain
    reference: Reference
    steps: int
    processes: Processes = ALONE
    step: int = 0
    loss: float | None = None
    curve: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.objective = Objective(self.spec, self.model, self.reference)
        beside = {ALTERNATIVE: "forget"} if ALTERNATIVE in self.objective.needs else {}
        world = self.processes
        self.feed = Feed(self.spec, self.sets, packs(self.model), beside, world.rank, world.size)
        self.names = [name for name in ("forget", *beside, "retain") if beside.get(name, name) in self.objective.sets]
        # Ahead of the optimizer: sharding replaces parameters.
        self.loss_of = world.wrap(self.objective)
        self.row = OPTIMIZERS[self.spec.optimizer.name]
        self.named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in self.named]
        self.optimizer = self.row.build(self.named, self.spec.optimizer)
        self.curvature = self.row.curvature(self.spec.optimizer) if self.row.curvature else None
        rows = len(self.sets[self.names[0]]) if self.names else 1
        self.retain_weight = RetainWeight(self.spec.method.retain, self.steps, rows, self.spec.training.batch_size)

    def run(self, emit: Emit, stop: StopFlag, save: Callable[[], None], watch: Callable[[], bool]) -> None:
        """Train to the last step, or to the one after which `watch` says that it is enough.

        `save` writes a checkpoint of this state; both are called between steps only.
        Raises Diverged naming the step, and Stopped after saving where a stop was asked for.
        """
        try:
            self._run(emit, stop, save, watch)
        except Stopped:
            save()
            raise

    def _run(self, emit: Emit, stop: StopFlag, save: Callable[[], None], watch: Callable[[], bool]) -> None:
        began, saved_at, first = time.monotonic(), time.monotonic(), self.step
        save_every, pause = self.spec.training.checkpoint_every, _SAVE_SECONDS
        while self.step < self.steps:
            # A step that renews the curvature is not stopped in its middle.
            stop.check()
            fields = self.one_step(stop)
            seconds = time.monotonic() - began
            left = seconds / (self.step - first) * (self.steps - self.step)
            emit("step", **fields, steps=self.steps, seconds=round(seconds, 3), seconds_left=round(left, 1))
            if self.step == self.steps:
                return
            if watch():
                return
            due = self.step % save_every == 0 if save_every else time.monotonic() - saved_at > pause
            if self.processes.agree(due):
                saving = time.monotonic()
                save()
                saved_at = time.monotonic()
                # The checkpoint of a large model takes long; it may not take more than a twentieth of the time.
                pause = max(_SAVE_SECONDS, 20 * (saved_at - saving))

    def one_step(self, stop: StopFlag) -> dict[str, Any]:
        """One optimizer step; returns what is told of it. Raises Diverged, and Stopped between forward passes."""
        # After a stop between refresh and step the resumed run would refresh again: such a step is not stopped.
        refreshed = self.curvature is not None and refresh(self, self.curvature)
        losses = self.gradients(StopFlag() if refreshed else stop)
        told = self._checked(losses, self._clip())
        told["lr"] = self.spec.optimizer.lr * rate_factor(self.spec.training, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = told["lr"]
        self.optimizer.step()
        # Gradients are as large as the weights, and nothing between two steps needs them.
        self.optimizer.zero_grad(set_to_none=True)
        told |= self._reported()
        self.step += 1
        self.loss = told["loss"]
        self.curve.append({k: v for k, v in told.items() if v is not None})
        return told

    def let_go(self) -> None:
        """Give up what only further steps would need; none can be taken any more."""
        self.optimizer.state.clear()
        self.reference.sums.clear()
        self.reference.hidden.clear()
        self.reference.frozen_head = None

    def _clip(self) -> Tensor:
        """The norm of the gradient; the optimizer is told by how much to shorten it."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = self.processes.whole(torch.nn.utils.get_total_norm(grads))
        limit = self.spec.training.max_grad_norm
        if limit is not None:
            fold_clip(self.optimizer, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _checked(self, losses: Mapping[str, Tensor], norm: Tensor) -> dict[str, Any]:
        """Losses and norm as numbers, in one transfer. Raises Diverged where one is not finite."""
        forget, retain, size = torch.stack([losses["forget"], losses["retain"], norm]).tolist()
        for number in (forget, retain, size):
            if not math.isfinite(number):
                raise Diverged(self.step + 1, number)
        weight = self.retain_weight.at(self.step)
        fields = {
            "step": self.step + 1,
            "loss": self.spec.method.weight * forget + weight * retain,
            "forget_loss": self.spec.method.weight * forget,
            "retain_loss": weight * retain if "retain" in self.objective.sets else None,
            "retain_weight": self.retain_weight.told(self.step),
            "grad_norm": size,
        }
        self.retain_weight.after(self.step, retain)
        return fields

    def _reported(self) -> dict[str, float]:
        """What the optimizer says of its step, in one transfer. Raises Diverged where that was not finite."""
        report = self.row.report(self.optimizer, self.processes.over_shards)
        told = dict(zip(report, torch.stack(list(report.values())).tolist(), strict=True))
        if not math.isfinite(told["update_norm"]):
            raise Diverged(self.step + 1, told["update_norm"])
        return told

    def gradients(self, stop: StopFlag) -> dict[str, Tensor]:
        """The current step's gradient of the whole objective into `.grad`; returns the unweighted losses F (`forget`)
        and R (`retain`), summed over processes.

        Means are over the tokens or rows of the step, whatever number of passes and processes it takes.
        """
        self.optimizer.zero_grad(set_to_none=True)
        lengths = {name: self.feed.lengths(name, self.step) for name in self.names}
        weights = torch.tensor([self.spec.method.weight, self.retain_weight.at(self.step)]).to(self.model.device)
        total = torch.zeros_like(weights)
        for last, one in self.passes(self.names):
            stop.check()
            with self.processes.synchronised(self.loss_of, last):
                with autocast(self.model, self.spec.training.precision):
                    losses = self.loss_of(one, lengths)
                # Sharing averages gradients over processes, each of which has its share of the step's sum.
                ((losses * weights).sum() * (one.weight * self.processes.size)).backward()
            total += losses.detach() * one.weight
        self._regularise()
        forget, retain = self.processes.sum(total)
        return {"forget": forget, "retain": retain}

    def _regularise(self) -> None:
        scale = getattr(self.spec.method, "l1", 0.0)
        if scale:
            for p in self.parameters:
                if p.grad is not None:
                    p.grad.add_(p.detach().sign(), alpha=scale)

    def passes(self, names: Sequence[str]) -> Iterator[tuple[bool, Pass]]:
        """This process's forward passes over the current step's rows of these sets; whether each is the last."""
        portions = list(self.feed.portions(names, self.step))
        for i, portion in enumerate(portions):
            examples = {name: [self.sets[name][row] for row in rows] for name, rows in portion.rows.items()}
            counts = {name: [e.answer_tokens for e in own] for name, own in examples.items()}
            batch = collate(self.model, [e for own in examples.values() for e in own])
            yield i == len(portions) - 1, Pass(portion.rows, portion.places, counts, batch, portion.weight)


def steps_of(spec: JobSpec, sets: Mapping[str, Sequence[Example]]) -> int:
    """Optimizer steps of the whole run: as given, or as many as the epochs take over the forget set, or over the
    retain set where only that is trained on; 0 for a method that takes none."""
    trained_on = sets_of(spec)
    if not trained_on:
        return 0
    if spec.training.steps is not None:
        return spec.training.steps
    epochs = 5.0 if spec.training.epochs is None else spec.training.epochs
    return max(1, math.ceil(epochs * len(sets[trained_on[0]]) / spec.training.batch_size))
