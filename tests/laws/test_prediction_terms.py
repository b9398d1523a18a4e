"""Laws of the forget terms that look at whole predictions or at inner states, in double precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.methods.distributions import ce_ref_forget, ce_u, ihl, logit_flat, max_entropy, undial
from core.methods.inner import direction, rmu
from core.spec.terms import CeRefForget, CeU, Ihl, LogitFlat, MaxEntropy, Rmu, Undial
from tests.views import VOCAB, gradient, random_view, view_of

many = settings(max_examples=30, deadline=None)
lengths = st.lists(st.integers(1, 7), min_size=1, max_size=6)
seeds = st.integers(0, 2**31)


@many
@given(lengths, seeds)
def test_undial_that_lowers_nothing_stays_at_the_reference(lengths: list[int], seed: int) -> None:
    view = random_view(lengths, seed, "own")
    assert gradient(undial(view, Undial(beta=0)), view).abs().max() < 1e-12
    assert gradient(undial(view, Undial(beta=1)), view).abs().max() > 1e-10


@many
@given(lengths, seeds, st.floats(0, 20))
def test_undial_is_least_where_the_true_tokens_logit_is_the_references_less_b(
    lengths: list[int], seed: int, beta: float
) -> None:
    view = random_view(lengths, seed, "own")
    assert view.reference.hidden is not None
    lowered = view.reference.hidden.clone()
    lowered[torch.arange(len(view.targets)), view.targets] -= beta
    there = view_of(lowered.requires_grad_(), view.targets, lengths, reference_logits=view.reference.hidden)
    assert gradient(undial(there, Undial(beta=beta)), there).abs().max() < 1e-12


@many
@given(lengths, seeds)
def test_ce_ref_forget_leaves_the_reference_which_a_divergence_would_not(lengths: list[int], seed: int) -> None:
    view = random_view(lengths, seed, "own")
    assert gradient(ce_ref_forget(view, CeRefForget()), view).abs().max() > 1e-6


@many
@given(lengths, seeds, st.integers(0, 3))
def test_ce_u_pulls_by_the_share_of_the_true_token_alone(lengths: list[int], seed: int, skip: int) -> None:
    """Its gradient is p - q, with q the prediction once the true token is ruled out: at the true token p, elsewhere
    -p p_true / (1 - p_true)."""
    view = random_view(lengths, seed)
    assert view.hidden is not None
    pull = gradient(ce_u(view, CeU(skip=skip)), view)
    p = view.hidden.detach().softmax(-1)
    true = p.gather(1, view.targets[:, None])
    wanted = (-p * true / (1 - true)).scatter(1, view.targets[:, None], true)
    counts = (view.position >= skip)[:, None]
    torch.testing.assert_close(pull, torch.where(counts, wanted, 0) / max(1, int(counts.sum())))


@many
@given(lengths, st.floats(-50, 50))
def test_flat_logits_are_where_max_entropy_and_logit_flat_rest(lengths: list[int], level: float) -> None:
    tokens = sum(lengths)
    logits = torch.full((tokens, VOCAB), level, dtype=torch.float64, requires_grad=True)
    view = view_of(logits, torch.zeros(tokens).long(), lengths)
    for loss in (max_entropy(view, MaxEntropy()), logit_flat(view, LogitFlat())):
        assert abs(loss.item()) < 1e-12
        assert gradient(loss, view).abs().max() < 1e-12


@many
@given(lengths, seeds)
def test_max_entropy_is_positive_elsewhere_and_blind_to_a_shift(lengths: list[int], seed: int) -> None:
    view = random_view(lengths, seed)
    assert view.hidden is not None
    loss = max_entropy(view, MaxEntropy())
    assert loss.item() > 1e-6
    torch.testing.assert_close(max_entropy(view_of(view.hidden + 7, view.targets, lengths), MaxEntropy()), loss)


@many
@given(lengths, seeds, st.floats(0.01, 100))
def test_ihl_lies_between_0_and_2(lengths: list[int], seed: int, spread: float) -> None:
    assert 0 <= ihl(random_view(lengths, seed, spread=spread), Ihl()).item() <= 2


@pytest.mark.parametrize(("target", "bound"), [(3, 2.0), (4, 0.0)])
def test_ihl_reaches_its_bounds_at_certainty(target: int, bound: float) -> None:
    logits = torch.zeros(2, VOCAB, dtype=torch.float64)
    logits[:, 3] = 60
    loss = ihl(view_of(logits, torch.full((2,), target), [2]), Ihl())
    assert loss.item() == pytest.approx(bound, abs=1e-12)


@many
@given(lengths, seeds, st.integers(2, 64), st.floats(0.1, 1e3))
def test_rmu_is_nothing_where_states_lie_at_c_u_and_grows_by_their_distance(
    lengths: list[int], seed: int, size: int, c: float
) -> None:
    term, tokens = Rmu(c=c, direction=seed % 100), sum(lengths)
    u = direction(term.direction, size, torch.device("cpu"))
    assert torch.linalg.vector_norm(u).item() == pytest.approx(1, rel=1e-6)
    view = view_of(torch.zeros(tokens, VOCAB), torch.zeros(tokens).long(), lengths, layer=(c * u).expand(tokens, size))
    assert rmu(view, term).item() == 0
    off = torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed))
    moved = view_of(torch.zeros(tokens, VOCAB), view.targets, lengths, layer=c * u + c * off)
    assert rmu(moved, term).item() == pytest.approx(float((c * off).square().mean()), rel=1e-4)


def test_the_direction_is_of_its_seed_and_size_alone() -> None:
    cpu = torch.device("cpu")
    first = direction(3, 16, cpu).clone()
    direction.cache_clear()
    assert torch.equal(direction(3, 16, cpu), first)
    assert not torch.equal(direction(4, 16, cpu), first)
    assert not torch.allclose(direction(3, 32, cpu)[:16], first)
    assert (first < 0).any()
    assert (first > 0).any()
