"""The loop: micro-batches of forget and retain rows in one forward, curvature where the optimizer asks for it, events.

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

from core.data.batches import by_length, rows_of_step
from core.errors import Diverged, Stopped
from core.events import Emit, StopFlag
from core.methods import METHODS, Method
from core.methods.retain import RETAIN_TERMS, Retain
from core.model import head, hidden_states
from core.optim import OPTIMIZERS
from core.optim.curvature import sampled_label_loss
from core.optim.schedule import rate_factor
from core.reference import Reference
from core.spec.job import JobSpec
from core.tokens import Example, Padded, pad
from core.views import View

_SAVE_SECONDS = 120.0
_STREAMS = {"forget": 0, "retain": 1, "labels": 2}


@dataclass(frozen=True)
class Pass:
    """One forward pass: the rows of each set in it, and the padded batch in which each set's rows stand together."""

    rows: Mapping[str, Sequence[int]]
    tokens: Mapping[str, int]
    batch: Padded


@dataclass
class Trainer:
    """A run's training state. `step` counts finished optimizer steps."""

    spec: JobSpec
    model: PreTrainedModel
    sets: Mapping[str, Sequence[Example]]  # forget (or the refusals in its place), retain
    reference: Reference
    steps: int
    step: int = 0
    loss: float | None = None
    curve: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        row = OPTIMIZERS[self.spec.optimizer.name]
        self.row = row
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = row.build(self.parameters, self.spec.optimizer)
        self.curvature = row.curvature(self.spec.optimizer) if row.curvature else None
        self.method: Method = METHODS[self.spec.method.name]
        self.retain: Retain = RETAIN_TERMS[self.spec.method.retain.name]

    def run(self, emit: Emit, stop: StopFlag, save: Callable[[], None], watch: Callable[[], None]) -> None:
        """Train to the last step.

        `save` writes a checkpoint of this state, `watch` looks at it; both are called between steps only.
        Raises Diverged naming the step, and Stopped after saving where a stop was asked for.
        """
        try:
            self._run(emit, stop, save, watch)
        except Stopped:
            save()
            raise

    def _run(self, emit: Emit, stop: StopFlag, save: Callable[[], None], watch: Callable[[], None]) -> None:
        began, saved_at, first = time.monotonic(), time.monotonic(), self.step
        watch_every = self.spec.evaluation.watch_every or max(1, math.ceil(self.steps / 10))
        save_every = self.spec.training.checkpoint_every
        while self.step < self.steps:
            fields = self._one_step(stop)
            self.step += 1
            seconds = time.monotonic() - began
            left = seconds / (self.step - first) * (self.steps - self.step)
            self.loss = fields["loss"]
            fields = {"step": self.step, **fields}
            self.curve.append({k: v for k, v in fields.items() if v is not None})
            emit("step", **fields, steps=self.steps, seconds=round(seconds, 3), seconds_left=round(left, 1))
            if self.step == self.steps:
                return
            if self.step % watch_every == 0:
                watch()
            if self.step % save_every == 0 if save_every else time.monotonic() - saved_at > _SAVE_SECONDS:
                save()
                saved_at = time.monotonic()

    def rows(self, name: str, step: int | None = None) -> list[int]:
        """A step's rows of a set, the current step's by default."""
        return rows_of_step(
            self.step if step is None else step,
            len(self.sets[name]),
            self.spec.training.batch_size,
            seed=self.spec.seed,
            stream=_STREAMS[name],
        )

    def rows_ever(self, name: str) -> set[int]:
        """Every row of a set that the whole run will see."""
        return {row for step in range(self.steps) for row in self.rows(name, step)}

    def passes(self, names: Sequence[str]) -> Iterator[Pass]:
        """The current step's rows of these sets, mixed by length into as few forward passes as the budget allows."""
        items = [(name, row) for name in names for row in self.rows(name)]
        budget = self.spec.training.micro_batch_tokens
        for batch in by_length(items, lambda item: len(self.sets[item[0]][item[1]].ids), budget):
            rows = {name: [row for n, row in batch if n == name] for name in names}
            examples = {name: [self.sets[name][row] for row in rows[name]] for name in names}
            tokens = {name: sum(e.answer_tokens for e in examples[name]) for name in names}
            yield Pass(rows, tokens, pad([e for name in names for e in examples[name]], self.model.device))

    def _tokens(self, names: Sequence[str]) -> dict[str, int]:
        return {name: sum(self.sets[name][row].answer_tokens for row in self.rows(name)) for name in names}

    def _one_step(self, stop: StopFlag) -> dict[str, Any]:
        # After a stop between refresh and step the resumed run would refresh again: such a step is not stopped.
        losses = self.gradients(StopFlag() if self._refresh_curvature() else stop)
        total = float(losses["forget"] + losses["retain"])
        if not math.isfinite(total):
            raise Diverged(self.step + 1, total)
        limit = self.spec.training.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, math.inf if limit is None else limit)
        if not math.isfinite(float(norm)):
            raise Diverged(self.step + 1, float(norm))
        factor = rate_factor(self.spec.training, self.step, self.steps)
        lr = self.spec.optimizer.lr * factor
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        # Gradients are as large as the weights, and nothing between two steps needs them.
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "loss": total,
            "forget_loss": float(losses["forget"]),
            "retain_loss": float(losses["retain"]) if self.retain.loss else None,
            "lr": lr,
            "grad_norm": float(norm),
            "clip_fraction": self.row.clip_fraction(self.optimizer) if self.row.clip_fraction else None,
        }

    def gradients(self, stop: StopFlag) -> dict[str, Tensor]:
        """The current step's gradient of the whole objective into `.grad`; returns the weighted loss of each set.

        Means are over the tokens or rows of the step, whatever number of passes it takes.
        """
        self.optimizer.zero_grad(set_to_none=True)
        names = ["forget", "retain"] if self.retain.loss else ["forget"]
        step_tokens, step_rows = self._tokens(names), self.spec.training.batch_size
        losses = {name: torch.zeros((), device=self.model.device) for name in ("forget", "retain")}
        for one in self.passes(names):
            stop.check()
            parts = []
            logits = head(self.model, hidden_states(self.model, one.batch))
            for name, view in self._views(one, logits, step_tokens, step_rows):
                loss = self._loss(name, view)
                losses[name] += loss.detach()
                parts.append(loss)
            torch.stack(parts).sum().backward()
        return losses

    def _views(
        self, one: Pass, logits: Tensor, step_tokens: Mapping[str, int], step_rows: int
    ) -> Iterator[tuple[str, View]]:
        first_row = 0
        # Splitting once, not slicing twice: the backward pass of a slice is a zero tensor as large as the whole.
        parts = [t.split(list(one.tokens.values())) for t in (logits, one.batch.targets, one.batch.at_row)]
        for (name, rows), own_logits, targets, at_row in zip(one.rows.items(), *parts, strict=True):
            if rows:
                needs = self.method.needs if name == "forget" else self.retain.needs
                sums = self.reference.sums[name][list(rows)] if "reference_sums" in needs else None
                reference = self.reference.logits(name, rows) if "reference_logits" in needs else None
                row = at_row - first_row
                yield (
                    name,
                    View(own_logits, targets, row, len(rows), step_tokens[name], step_rows, sums, reference),
                )
            first_row += len(rows)

    def _loss(self, name: str, view: View) -> Tensor:
        method = self.spec.method
        if name == "forget":
            return method.weight * self.method.loss(view, method)
        assert self.retain.loss is not None
        return method.retain.weight * self.retain.loss(view)

    def _refresh_curvature(self) -> bool:
        """Gauss-Newton-Bartlett over the current step's rows, where it is due; whether it was.

        Before the step's own gradients are made, so that only one set of gradients is ever held.
        """
        if self.curvature is None or not self.curvature.due(self.step):
            return False
        self.optimizer.zero_grad(set_to_none=True)
        generator = torch.Generator(self.model.device)
        generator.manual_seed((self.spec.seed * 1_000_003 + self.step) * 8 + _STREAMS["labels"])
        names, tokens = self.curvature.sets, self._tokens(self.curvature.sets)
        positions = sum(tokens.values())
        # Drawn for the whole step, and used set by set in the order of lengths: how it is cut changes no label.
        drawn = {name: torch.rand(tokens[name], generator=generator, device=self.model.device) for name in names}
        for one in self.passes(names):
            parts = []
            for name in names:
                part, drawn[name] = drawn[name].split([one.tokens[name], len(drawn[name]) - one.tokens[name]])
                parts.append(part)
            logits = head(self.model, hidden_states(self.model, one.batch))
            sampled_label_loss(logits, positions, torch.cat(parts)).backward()
        self.curvature.update(self.optimizer, positions)
        return True


def steps_of(spec: JobSpec, forget_rows: int) -> int:
    """Optimizer steps of the whole run: as given, or as many as the epochs over the forget set take."""
    if spec.training.steps is not None:
        return spec.training.steps
    epochs = 5.0 if spec.training.epochs is None else spec.training.epochs
    return max(1, math.ceil(epochs * forget_rows / spec.training.batch_size))
