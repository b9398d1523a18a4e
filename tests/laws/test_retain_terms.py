"""The retain terms' laws, and what holds at the reference through the trainer's own cached reference."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from core.methods.distributions import ce_ref_forget
from core.methods.inner import hidden
from core.methods.retain import RETAIN_TERMS, ce_ref, kl, nll
from core.spec.retain import RETAIN_TERMS as SPECS
from core.spec.terms import CeRefForget
from core.views import ReferenceView, View
from tests import tiny
from tests.views import view_of

LENGTHS = [4, 1, 4]
TARGETS = torch.tensor([3, 0, 7, 7, 12, 1, 5, 2, 9])


def random_logits(seed: int, spread: float = 4) -> Tensor:
    return spread * torch.randn(9, 13, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(logits: Tensor, reference: Tensor, **more: Any) -> View:
    return view_of(logits.requires_grad_(), TARGETS, LENGTHS, reference_logits=reference, **more)


def pull(loss: Tensor, view: View) -> Tensor:
    assert view.hidden is not None
    return torch.autograd.grad(loss, view.hidden)[0]


def test_kl_is_zero_with_zero_gradient_where_nothing_moved_and_positive_elsewhere() -> None:
    reference = random_logits(0)
    # A constant added to all logits of a position changes no probability.
    shift = torch.randn(9, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for logits, same in ((reference + shift, True), (reference + 0.1 * random_logits(2), False)):
        view = seen(logits, reference)
        loss = kl(view)
        assert math.isclose(loss.item(), 0, abs_tol=1e-12) == same
        assert (pull(loss, view).abs().max().item() < 1e-12) == same
        assert loss.item() > -1e-12


def test_kl_pulls_each_probability_towards_the_references() -> None:
    view = seen(random_logits(0), random_logits(1))
    assert view.hidden is not None
    assert view.reference.hidden is not None
    wanted = (view.hidden.softmax(-1) - view.reference.hidden.softmax(-1)) / 9
    torch.testing.assert_close(pull(kl(view), view), wanted)


def test_ce_ref_is_no_divergence_at_the_reference_it_is_the_entropy_and_pulls_still() -> None:
    logits = random_logits(0, spread=1)
    view = seen(logits, logits.detach().clone())
    loss = ce_ref(view)
    assert loss.item() == pytest.approx(torch.distributions.Categorical(logits=logits).entropy().mean().item())
    assert pull(loss, view).abs().max() > 1e-3


def test_ce_ref_is_least_on_the_references_likeliest_tokens() -> None:
    reference = random_logits(1)
    sure = torch.full((9, 13), -1e3, dtype=torch.float64).scatter(1, reference.argmax(-1)[:, None], 0.0)
    least = -reference.log_softmax(-1).max(-1).values.mean()
    assert ce_ref(seen(sure, reference)).item() == pytest.approx(least.item())
    assert ce_ref(seen(random_logits(2), reference)) > least


def test_ce_ref_turned_round_is_ce_ref_forget() -> None:
    view = seen(random_logits(0), random_logits(1))
    assert (ce_ref(view) + ce_ref_forget(view, CeRefForget())).item() == 0


def test_hidden_is_the_mean_square_of_what_moved() -> None:
    states, moved = torch.randn(9, 6).double(), torch.randn(9, 6).double()

    def at(layer: Tensor) -> View:
        row = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))
        return View(TARGETS, row, LENGTHS, LENGTHS, layer=layer, reference=ReferenceView(layer=states))

    still = states.clone().requires_grad_()
    assert hidden(at(still)).item() == 0
    assert torch.autograd.grad(hidden(at(still)), still)[0].abs().max() == 0
    torch.testing.assert_close(hidden(at(states + moved)), moved.square().mean())


@pytest.mark.parametrize("term", [nll, kl, ce_ref])
def test_a_token_that_is_ruled_out_makes_no_loss_infinite(term: Any) -> None:
    logits, reference = random_logits(0, spread=60), random_logits(1, spread=60)
    for each in (logits, reference):
        each[:, 11] = -math.inf
    view = seen(logits, reference)
    assert math.isfinite(term(view).item())
    assert torch.isfinite(pull(term(view), view)).all()


def test_every_retain_term_of_a_request_is_here() -> None:
    assert list(RETAIN_TERMS) == list(SPECS)
    assert {RETAIN_TERMS[name].loss for name in SPECS} == {None, nll, kl, ce_ref, hidden}


@pytest.mark.parametrize("budget", [16, 4096])
@pytest.mark.parametrize("retain", ["kl", "hidden"])
def test_at_the_first_step_npo_is_two_over_b_ln_two_and_the_reference_is_kept(budget: int, retain: str) -> None:
    model = tiny.llama()
    sets = {
        "forget": tiny.rows(1, [(5, 7), (9, 3), (3, 12)]),
        "retain": tiny.rows(2, [(4, 6), (2, 17), (8, 8), (6, 2)]),
    }
    method = {"name": "npo", "beta": 0.3, "weight": 0.5, "retain": {"name": retain, "weight": 7}}
    trainer = tiny.trainer(tiny.spec(method, batch_size=3, micro_batch_tokens=budget), model, sets)
    losses = trainer.gradients(tiny.STOP)
    assert math.isclose(float(losses["forget"]), 2 / 0.3 * math.log(2), rel_tol=1e-6)
    assert abs(float(losses["retain"])) < 1e-6
    with_retain = tiny.gradients(model)
    alone = tiny.trainer(tiny.spec(method | {"retain": "none"}, batch_size=3), model, sets)
    alone.gradients(tiny.STOP)
    for name, wanted in tiny.gradients(model).items():
        torch.testing.assert_close(with_retain[name], wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
