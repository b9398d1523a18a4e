"""The retain terms' laws, and what holds at the reference through the trainer's own cached reference."""

import math

import pytest
import torch

from core.methods.retain import kl
from core.views import View
from tests import tiny


def test_kl_is_zero_with_zero_gradient_where_nothing_moved_and_positive_elsewhere() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = 4 * torch.randn(9, 13, generator=generator, dtype=torch.float64)
    # A constant added to all logits of a position changes no probability.
    moved = reference + torch.randn(9, 1, generator=generator, dtype=torch.float64)
    for logits, same in ((moved, True), (reference + 0.1 * torch.randn(9, 13, generator=generator), False)):
        logits.requires_grad_()
        loss = kl(View(logits, torch.zeros(9).long(), torch.zeros(9).long(), 1, 9, 1, None, reference))
        (pull,) = torch.autograd.grad(loss, logits)
        assert math.isclose(loss.item(), 0, abs_tol=1e-12) == same
        assert torch.allclose(pull, torch.zeros_like(pull), atol=1e-12) == same
        assert loss.item() > -1e-12


@pytest.mark.parametrize("budget", [16, 4096])
def test_at_the_first_step_npo_is_two_over_b_ln_two_and_kl_is_nothing(budget: int) -> None:
    model = tiny.llama()
    sets = {
        "forget": tiny.rows(1, [(5, 7), (9, 3), (3, 12)]),
        "retain": tiny.rows(2, [(4, 6), (2, 17), (8, 8), (6, 2)]),
    }
    method = {"name": "npo", "beta": 0.3, "weight": 0.5, "retain": {"name": "kl", "weight": 7}}
    trainer = tiny.trainer(tiny.spec(method, batch_size=3, micro_batch_tokens=budget), model, sets)
    losses = trainer.gradients(tiny.STOP)
    assert math.isclose(float(losses["forget"]), 0.5 * 2 / 0.3 * math.log(2), rel_tol=1e-6)
    assert abs(float(losses["retain"])) < 1e-6
    with_kl = tiny.gradients(model)
    alone = tiny.trainer(tiny.spec(method | {"retain": "none"}, batch_size=3), model, sets)
    alone.gradients(tiny.STOP)
    for name, pull in tiny.gradients(model).items():
        torch.testing.assert_close(with_kl[name], pull, rtol=1e-4, atol=1e-5 * float(pull.abs().max()))
