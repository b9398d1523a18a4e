"""How much work a request is, in records: what its cost is estimated from, and what the cost of a run is told by."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from core.spec.job import JobSpec

# Methods that take no optimizer step, and the one that trains on the retain set alone.
_NO_STEPS = ("guard", "origin", "task_vector", "influence")
_RETAIN_ALONE = ("retrain",)


@dataclass(frozen=True)
class Work:
    """Records that pass through training steps, and through the scorings before and after, each counted every time."""

    trained: int
    scored: int


def work(spec: JobSpec, rows: Mapping[str, int], steps: int | None = None) -> Work:
    """The work on sets of so many rows, by name; `steps` are those really taken, or else those planned."""
    scored = 2 * sum(rows.values())
    if spec.method.name in _NO_STEPS:
        return Work(0, scored)
    alone = spec.method.name in _RETAIN_ALONE
    if steps is None:
        steps = spec.training.steps or _planned(spec, rows["retain" if alone else "forget"])
    beside = "retain" in rows and not alone and spec.method.retain.name != "none"
    return Work(steps * spec.training.batch_size * (2 if beside else 1), scored)


def _planned(spec: JobSpec, rows: int) -> int:
    epochs = 5.0 if spec.training.epochs is None else spec.training.epochs
    return max(1, math.ceil(epochs * rows / spec.training.batch_size))
