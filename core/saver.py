"""When a run leaves a checkpoint, and what of its training goes into one."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from core import checkpoint
from core.environment import versions
from core.events import Emit
from core.report.schema import Measurement
from core.train import Trainer

# A watcher's looks, the step that it would deliver, and the files that a checkpoint needs besides its own.
Watched = tuple[list[dict[str, float]], int | None, list[Path]]


@dataclass
class Saver:
    """Saves the trainer's state when called, and keeps the newest `keep` checkpoints; None: all of them.

    All processes must call it; the first writes, and the others return when it has.
    """

    folder: Path
    trainer: Trainer
    input_model: str
    check: str
    before: Sequence[Mapping[str, Measurement]]  # of each request of the run
    emit: Emit
    keep: int | None
    seconds_before: float
    watched: Callable[[], Watched] = lambda: ([], None, [])
    began: float = field(default_factory=time.monotonic)
    _saved: int | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all attempts."""
        return self.seconds_before + time.monotonic() - self.began

    def __call__(self) -> None:
        trainer, world = self.trainer, self.trainer.processes
        if self._saved == trainer.step:
            return
        target = self.folder / f"step-{trainer.step:08d}"
        # A complete one of this step is left as it is.
        if not world.agree(checkpoint.is_complete(target)):
            self._write(target)
        self._saved = trainer.step
        self.emit("checkpoint", step=trainer.step, folder=str(target))
        if self.keep is not None and world.first:
            checkpoint.prune(target, self.keep)

    def _write(self, target: Path) -> None:
        trainer, world = self.trainer, self.trainer.processes
        looks, best, beside = self.watched()
        state = checkpoint.State(
            step=trainer.step,
            spec_digest=trainer.spec.digest(),
            input_model=self.input_model,
            data_check=self.check,
            threads=torch.get_num_threads(),
            versions=versions(),
            loss=trainer.loss,
            retain_dual=trainer.retain_weight.dual,
            curve=trainer.curve,
            before=[{name: m.model_dump() for name, m in scores.items()} for scores in self.before],
            seconds=self.seconds,
            looks=looks,
            best=best,
            processes=world.size,
        )
        tensors = {
            "weights": world.in_memory(checkpoint.trained(trainer)),
            "optimizer": world.in_memory(_optimizer_state(trainer)),
            "reference": trainer.reference.tensors(),
        }
        world.from_first(lambda: checkpoint.write(target, state, tensors, beside))


def _optimizer_state(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    # In the order of the parameters, which is the same in all processes.
    for name, p in checkpoint.trained(trainer):
        for slot, value in trainer.optimizer.state.get(p, {}).items():
            yield f"{name}/{slot}", value
