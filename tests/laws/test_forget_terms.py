"""Laws of the forget terms that follow from their definitions alone, on random logits in double precision."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core import views
from core.methods import METHODS
from core.methods.preference import dpo, npo, simnpo
from core.methods.retain import nll
from core.methods.token_nll import answered, ascent, satimp, wga
from core.spec.edits import TaskVector
from core.spec.terms import (
    Ascent,
    CeRefForget,
    CeU,
    Dpo,
    Ihl,
    LogitFlat,
    MaxEntropy,
    Npo,
    RandomLabel,
    Refusal,
    SatImp,
    SimNpo,
    Undial,
    Wga,
)
from core.views import View
from tests.views import VOCAB, gradient, random_view, view_of

many = settings(max_examples=30, deadline=None)
lengths = st.lists(st.integers(1, 7), min_size=1, max_size=6)
seeds = st.integers(0, 2**31)
betas = st.floats(0.01, 10)
# A term for each method that sees logits, with what its defaults hide.
TERMS: dict[str, Any] = {
    "ascent": Ascent(),
    "wga": Wga(beta=0.7),
    "satimp": SatImp(beta1=2, beta2=0.5),
    "npo": Npo(),
    "simnpo": SimNpo(delta=0.3),
    "dpo": Dpo(),
    "refusal": Refusal(),
    "random_label": RandomLabel(),
    "ce_ref_forget": CeRefForget(),
    "undial": Undial(beta=3),
    "ce_u": CeU(),
    "max_entropy": MaxEntropy(),
    "ihl": Ihl(),
    "logit_flat": LogitFlat(),
    "task_vector": TaskVector(),
}


@many
@given(lengths, seeds, betas, st.sampled_from(["sequence", "tokens"]))
def test_npo_at_the_reference_is_two_over_b_ln_two(lengths: list[int], seed: int, beta: float, by: Any) -> None:
    loss = npo(random_view(lengths, seed, "own"), Npo(beta=beta, normalise=by))
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
    assert view.reference.sums is not None
    fading = 2 * torch.sigmoid(-beta * (view.sums - view.reference.sums)).detach()
    wanted = gradient(-(fading * view.sums).sum() / view.rows, view)
    torch.testing.assert_close(gradient(npo(view, Npo(beta=beta)), view), wanted)


@many
@given(st.integers(1, 5), st.integers(1, 6), seeds, betas)
def test_npo_by_tokens_on_rows_of_one_length_is_npo_by_sequences_at_a_smaller_b(
    length: int, rows: int, seed: int, beta: float
) -> None:
    view = random_view([length] * rows, seed, "other")
    by_tokens = npo(view, Npo(beta=beta, normalise="tokens"))
    torch.testing.assert_close(by_tokens, npo(view, Npo(beta=beta / length)) / length)


@many
@given(lengths, lengths, seeds, betas)
def test_dpo_whose_other_answers_have_not_moved_is_npo(
    lengths: list[int], others: list[int], seed: int, beta: float
) -> None:
    view = random_view(lengths, seed, "other")
    unmoved = random_view((others * len(lengths))[: len(lengths)], seed + 1, "own")
    compared = view.with_alternative(unmoved)
    torch.testing.assert_close(dpo(compared, Dpo(beta=beta)), npo(view, Npo(beta=beta)))


@many
@given(lengths, seeds, betas)
def test_dpo_of_an_answer_with_itself_pulls_nowhere(lengths: list[int], seed: int, beta: float) -> None:
    view = random_view(lengths, seed, "other")
    loss = dpo(view.with_alternative(view), Dpo(beta=beta))
    assert math.isclose(loss.item(), 2 / beta * math.log(2), rel_tol=1e-12)
    assert gradient(loss, view).abs().max() < 1e-12


def test_dpo_raises_the_other_answer_and_lowers_the_true_one() -> None:
    true, other = random_view([3, 2], 1, "own"), random_view([2, 4], 2, "own")
    loss = dpo(true.with_alternative(other), Dpo())
    # Against the gradient: the true answer's NLL rises, the other's falls.
    assert (gradient(loss, true) * gradient(true.nll.sum(), true)).sum() < 0
    assert (gradient(loss, other) * gradient(other.nll.sum(), other)).sum() > 0


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
    assert view.hidden is not None
    thrice = [3 * length for length in lengths]
    again = view_of(view.hidden.repeat_interleave(3, 0), view.targets.repeat_interleave(3), thrice)
    term = SimNpo(beta=beta, delta=delta)
    torch.testing.assert_close(simnpo(again, term), simnpo(view, term))


@many
@given(lengths, seeds)
def test_ascent_is_what_retaining_the_same_rows_undoes(lengths: list[int], seed: int) -> None:
    view = random_view(lengths, seed)
    assert (ascent(view, Ascent()) + nll(view)).item() == 0
    assert torch.equal(answered(view, Refusal()), nll(view))


@many
@given(lengths, seeds)
def test_weighted_ascent_without_powers_is_ascent(lengths: list[int], seed: int) -> None:
    view = random_view(lengths, seed)
    plain = ascent(view, Ascent())
    for weighted in (wga(view, Wga(beta=0)), satimp(view, SatImp(beta1=0, beta2=0))):
        torch.testing.assert_close(weighted, plain)
        torch.testing.assert_close(gradient(weighted, view), gradient(plain, view))


@many
@given(lengths, seeds, st.floats(0, 5), st.floats(0, 5))
def test_the_weights_of_ascent_do_not_pull_themselves(lengths: list[int], seed: int, b1: float, b2: float) -> None:
    view = random_view(lengths, seed)
    p = torch.exp(-view.nll).detach()
    for loss, weights in (
        (wga(view, Wga(beta=b1)), p**b1),
        (satimp(view, SatImp(beta1=b1, beta2=b2)), p**b1 * (1 - p) ** b2),
    ):
        wanted = gradient(-(weights * view.nll).sum() / view.step_tokens, view)
        torch.testing.assert_close(gradient(loss, view), wanted, rtol=1e-6, atol=1e-12)


def test_every_method_that_sees_logits_is_spoken_of_here() -> None:
    assert set(TERMS) == {name for name, row in METHODS.items() if row.loss is not None} - {"rmu"}
    for name, term in TERMS.items():
        assert isinstance(term, METHODS[name].spec)


def loss_of(name: str) -> Callable[[View, Any], Tensor]:
    found = METHODS[name].loss
    assert found is not None
    return found


@pytest.mark.parametrize("name", TERMS)
def test_a_steps_loss_is_the_sum_of_its_parts_losses(name: str) -> None:
    rows = [3, 1, 6, 2, 2]
    whole = random_view(rows, 5, "other").with_alternative(random_view([2, 4, 1, 1, 3], 6, "other"))
    parts = [_rows(whole, i, i + 1) for i in range(len(rows))]
    sums = torch.stack([loss_of(name)(part, TERMS[name]) for part in parts]).sum()
    torch.testing.assert_close(sums, loss_of(name)(whole, TERMS[name]))


@pytest.mark.parametrize("name", TERMS)
def test_a_large_vocabulary_cut_into_chunks_gives_the_same_pull(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pulls = []
    for at_once in (views.LOGITS_AT_ONCE, 3 * VOCAB):
        monkeypatch.setattr(views, "LOGITS_AT_ONCE", at_once)
        view = random_view([3, 1, 6], 5, "other")
        loss = loss_of(name)(view.with_alternative(random_view([2, 4, 1], 6, "other")), TERMS[name])
        pulls.append(torch.cat([loss[None], gradient(loss, view).flatten()]))
    torch.testing.assert_close(*pulls)


def _rows(view: View, first: int, end: int) -> View:
    """The part of a view that holds these rows, of the same step."""
    begin, stop = sum(view.row_lengths[:first]), sum(view.row_lengths[:end])
    assert view.hidden is not None
    assert view.reference.sums is not None
    assert view.reference.hidden is not None
    part = view_of(
        view.hidden[begin:stop],
        view.targets[begin:stop],
        view.row_lengths[first:end],
        step_lengths=view.step_lengths,
        reference_sums=view.reference.sums[first:end],
        reference_logits=view.reference.hidden[begin:stop],
    )
    return part.with_alternative(view.alternative and _rows(view.alternative, first, end))


@pytest.mark.parametrize("name", sorted(set(TERMS) - {"max_entropy", "logit_flat"}))
def test_a_token_that_is_ruled_out_makes_no_loss_infinite(name: str) -> None:
    """As in families that mask part of their vocabulary; the two left out are infinite there by their definition."""
    view = random_view([3, 4], 8, "other", spread=60)
    assert view.hidden is not None
    assert view.reference.hidden is not None
    masked = [x.detach().clone() for x in (view.hidden, view.reference.hidden)]
    free = next(v for v in range(VOCAB) if v not in view.targets)
    for logits in masked:
        logits[:, free] = -math.inf
    made = view_of(
        masked[0].requires_grad_(),
        view.targets,
        [3, 4],
        reference_sums=view.reference.sums,
        reference_logits=masked[1],
    )
    loss = loss_of(name)(made.with_alternative(made), TERMS[name])
    assert math.isfinite(loss.item())
    assert torch.isfinite(gradient(loss, made)).all()


@pytest.mark.parametrize("name", TERMS)
def test_certainty_makes_no_loss_infinite(name: str) -> None:
    """Logits so far apart that probabilities round to 0 and 1, in single precision."""
    generator = torch.Generator().manual_seed(3)
    logits = 300 * torch.randn(6, VOCAB, generator=generator)
    targets = torch.cat([logits[:3].argmax(-1), logits[3:].argmin(-1)])
    then = 300 * torch.randn(6, VOCAB, generator=generator)
    sums = view_of(then, targets, [3, 3]).sums
    view = view_of(logits.requires_grad_(), targets, [3, 3], reference_sums=sums, reference_logits=then)
    loss = loss_of(name)(view.with_alternative(view), TERMS[name])
    assert math.isfinite(loss.item())
    assert torch.isfinite(gradient(loss, view)).all()
