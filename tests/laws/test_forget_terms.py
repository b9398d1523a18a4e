"""Laws of the forget terms that follow from their definitions alone, on random logits in double precision."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.methods.preference import npo, simnpo
from core.methods.retain import nll
from core.methods.token_nll import ascent, refusal
from core.spec.terms import Ascent, Npo, Refusal, SimNpo
from core.views import View

VOCAB = 11
many = settings(max_examples=30, deadline=None)
lengths = st.lists(st.integers(1, 7), min_size=1, max_size=6)
seeds = st.integers(0, 2**31)
betas = st.floats(0.01, 10)


def random_view(lengths: list[int], seed: int, reference: str | None = None) -> View:
    """All rows of a step; `reference` is its S_ref: `own` (the model has not moved), `other`, or `zero`."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    logits = 3 * torch.randn(tokens, VOCAB, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, VOCAB, (tokens,), generator=generator)
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    bare = View(logits.requires_grad_(), targets, row, len(lengths), tokens, len(lengths))
    sums = {
        "own": bare.sums.detach(),
        "other": bare.sums.detach() + torch.randn(len(lengths), generator=generator),
        "zero": torch.zeros(len(lengths), dtype=torch.float64),
    }
    return View(logits, targets, row, len(lengths), tokens, len(lengths), sums[reference] if reference else None)


def gradient(loss: torch.Tensor, view: View) -> torch.Tensor:
    return torch.autograd.grad(loss, view.logits, retain_graph=True)[0]


@many
@given(lengths, seeds, betas)
def test_npo_at_the_reference_is_two_over_b_ln_two(lengths: list[int], seed: int, beta: float) -> None:
    loss = npo(random_view(lengths, seed, "own"), Npo(beta=beta))
    assert math.isclose(loss.item(), 2 / beta * math.log(2), rel_tol=1e-12)


@many
@given(lengths, seeds)
def test_npo_for_small_b_pulls_as_ascent_times_tokens_per_sequence(lengths: list[int], seed: int) -> None:
    view = random_view(lengths, seed, "other")
    pull = gradient(npo(view, Npo(beta=1e-8)), view)
    tokens_per_sequence = sum(lengths) / len(lengths)
    torch.testing.assert_close(
        pull, tokens_per_sequence * gradient(ascent(view, Ascent()), view), rtol=1e-6, atol=1e-12
    )


@many
@given(lengths, seeds, betas)
def test_npo_pulls_as_ascent_of_sequences_with_a_weight_that_fades(lengths: list[int], seed: int, beta: float) -> None:
    view = random_view(lengths, seed, "other")
    assert view.reference_sums is not None
    fading = 2 * torch.sigmoid(-beta * (view.sums - view.reference_sums)).detach()
    wanted = gradient(-(fading * view.sums).sum() / view.rows, view)
    torch.testing.assert_close(gradient(npo(view, Npo(beta=beta)), view), wanted)


@many
@given(st.integers(1, 6), seeds, betas)
def test_simnpo_without_margin_on_single_tokens_is_npo_without_reference(rows: int, seed: int, beta: float) -> None:
    view = random_view([1] * rows, seed, "zero")
    torch.testing.assert_close(simnpo(view, SimNpo(beta=beta, delta=0)), npo(view, Npo(beta=beta)))


@many
@given(lengths, seeds, betas, st.floats(-3, 3))
def test_simnpo_does_not_care_how_often_a_token_is_repeated(
    lengths: list[int], seed: int, beta: float, delta: float
) -> None:
    view = random_view(lengths, seed)
    again = View(
        view.logits.repeat_interleave(3, 0),
        view.targets.repeat_interleave(3),
        view.row.repeat_interleave(3),
        view.rows,
        3 * view.step_tokens,
        view.step_rows,
    )
    term = SimNpo(beta=beta, delta=delta)
    torch.testing.assert_close(simnpo(again, term), simnpo(view, term))


@many
@given(lengths, seeds)
def test_ascent_is_what_retaining_the_same_rows_undoes(lengths: list[int], seed: int) -> None:
    view = random_view(lengths, seed)
    assert (ascent(view, Ascent()) + nll(view)).item() == 0
    assert torch.equal(refusal(view, Refusal()), nll(view))
