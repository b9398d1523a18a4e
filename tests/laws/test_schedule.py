"""The learning rate rises linearly to its peak, which it reaches, and falls linearly to zero, which it does not."""

import pytest

from core.optim.schedule import rate_factor
from core.spec.training import Training
from tests import tiny


@pytest.mark.parametrize(("steps", "warmup", "rising"), [(20, 0.2, 4), (7, 0.5, 4), (10, 0.01, 1), (1, 0.1, 1)])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_shape(steps: int, warmup: float, rising: int, schedule: str) -> None:
    training = Training(warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
    factors = [rate_factor(training, step, steps) for step in range(steps)]
    assert factors[:rising] == pytest.approx([(i + 1) / rising for i in range(rising)])
    falling = steps - rising
    after = [1.0] * falling if schedule == "constant" else [(falling - i) / falling for i in range(falling)]
    assert factors[rising:] == pytest.approx(after)
    assert max(factors) == 1
    assert min(factors) > 0


def test_no_warm_up_begins_at_the_peak() -> None:
    assert rate_factor(Training(warmup=0.0), 0, 10) == 1


def test_the_trainer_steps_at_the_scheduled_rate() -> None:
    wanted = tiny.spec("ascent", {"name": "adamw", "lr": 2e-4}, batch_size=2, warmup=0.4)
    rates: list[float] = []

    def emit(event: str, **fields: object) -> None:
        if event == "step":
            rates.append(fields["lr"])  # type: ignore[arg-type]

    trainer = tiny.trainer(wanted, tiny.llama(), {"forget": tiny.rows(0, [(3, 4), (2, 5)])}, steps=5)
    trainer.run(emit, tiny.STOP, lambda: None, lambda: None)
    assert rates == pytest.approx([1e-4, 2e-4, 2e-4, 2e-4 * 2 / 3, 2e-4 / 3])
