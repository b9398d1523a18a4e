"""The learning rate's course: linear warm-up from 0, then linear decay to 0 or none."""

import math

from core.spec.training import Training


def rate_factor(training: Training, step: int, steps: int) -> float:
    """What the peak rate is multiplied by at optimizer step `step` (from 0) of `steps`."""
    warmup = math.ceil(training.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if training.schedule == "constant":
        return 1.0
    return (steps - step) / max(1, steps - warmup)
