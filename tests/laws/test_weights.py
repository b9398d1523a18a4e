"""The weights of an objective: the retain term's course in a run, and the l1 penalty."""

import pytest
import torch

from core.retain_weight import RetainWeight
from core.spec.retain import NllRetain, PrimalDual
from tests import tiny

SETS = {"forget": tiny.rows(1, [(3, 5), (8, 2), (4, 11)]), "retain": tiny.rows(2, [(5, 4), (2, 13), (9, 1), (4, 4)])}
LINEAR = NllRetain.model_validate({"weight": 2.0, "schedule": "linear"})


@pytest.mark.parametrize(("rows", "batch"), [(8, 4), (4, 4), (40, 1), (12, 3)])
def test_a_linear_weight_counts_whole_passes_over_the_set_from_nought(rows: int, batch: int) -> None:
    weight = RetainWeight(LINEAR, 5 * rows // batch, rows, batch)
    seen = [weight.at(step) for step in range(5 * rows // batch)]
    assert seen == [2.0 * epoch / 5 for epoch in range(5) for _ in range(rows // batch)]


def test_no_rounding_puts_a_step_into_the_epoch_before_its_own() -> None:
    assert RetainWeight(LINEAR, 70, 7, 3).at(35) == 2.0 * 15 / 30


def test_a_dual_weight_follows_the_constraint_and_never_falls_below_nought() -> None:
    schedule = PrimalDual(eta=0.5, eps=1.0, warmup_epochs=1)
    weight = RetainWeight(NllRetain(weight=0.4, schedule=schedule), 10, 4, 2)
    seen = []
    for step, retain in enumerate([3.0, 3.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]):
        seen.append(weight.at(step))
        weight.after(step, retain)
    # Two steps are the first pass over four rows: the weight rests.
    assert seen == pytest.approx([0.4, 0.4, 0.4, 1.4, 1.4, 0.9, 0.4, 0.0, 0.0])


@pytest.mark.parametrize("budget", [16, 4096])
def test_the_penalty_adds_the_sign_of_every_weight_to_its_gradient_once(budget: int) -> None:
    gradients = []
    for l1 in (0.0, 0.01):
        model = tiny.llama()
        method = {"name": "zero", "l1": l1, "retain": "nll"}
        tiny.trainer(tiny.spec(method, batch_size=4, micro_batch_tokens=budget), model, SETS).gradients(tiny.STOP)
        gradients.append(tiny.gradients(model))
    bare, with_penalty = gradients
    for name, p in tiny.llama().named_parameters():
        torch.testing.assert_close(with_penalty[name] - bare[name], 0.01 * p.detach().sign(), rtol=1e-3, atol=1e-6)
