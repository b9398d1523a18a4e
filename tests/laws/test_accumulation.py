"""A step's loss and gradients are of the step: into how many forward passes it is cut, and what a row is padded to or
batched with, changes nothing."""

from typing import Any

import pytest
import torch

from core.reference import Reference, add_sums
from tests import tiny

FORGET = [(2, 9), (11, 3), (7, 30), (9, 1), (4, 14)]
RETAIN = [(20, 4), (3, 8), (1, 25), (5, 5), (10, 2), (8, 17)]
METHODS: list[dict[str, Any]] = [
    {"name": "ascent"},
    {"name": "npo", "beta": 0.4},
    {"name": "simnpo", "delta": 0.5},
    {"name": "refusal"},
]


def step(method: dict[str, Any], budget: int) -> tuple[int, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Passes, losses and gradients of one step of four rows a set, of a model that has left its reference."""
    model = tiny.llama()
    sets = {"forget": tiny.rows(3, FORGET), "retain": tiny.rows(4, RETAIN)}
    trainer = tiny.trainer(tiny.spec(method, batch_size=4, micro_batch_tokens=budget), model, sets)
    tiny.nudge(model)
    names = ["forget", "retain"] if method["retain"]["name"] != "none" else ["forget"]
    passes = len(list(trainer.passes(names)))
    return passes, trainer.gradients(tiny.STOP), tiny.gradients(model)


@pytest.mark.parametrize("retain", ["none", "nll", "kl"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: str(m["name"]))
def test_one_row_a_pass_is_all_rows_in_one(method: dict[str, Any], retain: str) -> None:
    weighted = method | {"weight": 1.5, "retain": {"name": retain} | ({"weight": 0.7} if retain != "none" else {})}
    many, losses, gradients = step(weighted, 16)
    one, losses_of_one, gradients_of_one = step(weighted, 1_000_000)
    assert (many, one) == (4 if retain == "none" else 8, 1)
    for name in ("forget", "retain"):
        torch.testing.assert_close(losses[name], losses_of_one[name], rtol=1e-5, atol=1e-7)
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradient, gradients_of_one[name], rtol=1e-4, atol=1e-5 * scale)


def test_a_sequence_has_one_likelihood_however_wide_its_batch() -> None:
    model, rows = tiny.llama(), tiny.rows(5, [*FORGET, *RETAIN])
    alone, together = Reference(), Reference()
    add_sums(alone, "x", model, rows, 1, tiny.STOP)
    add_sums(together, "x", model, rows, 1_000_000, tiny.STOP)
    torch.testing.assert_close(alone.sums["x"], together.sums["x"], rtol=1e-5, atol=1e-5)
    for row, total in zip(rows, alone.sums["x"].tolist(), strict=True):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            log_p = torch.log_softmax(model(ids).logits[0], -1)
        by_hand = -sum(float(log_p[t - 1, row.ids[t]]) for t in range(row.start, len(row.ids)))
        assert by_hand == pytest.approx(total, rel=1e-5)
