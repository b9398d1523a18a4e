"""Both estimates are unbiased. Gauss-Newton-Bartlett, averaged over sampled labels, is the Gauss-Newton diagonal, known
exactly for a softmax regression, and computable label by label for a small model; Hutchinson's, averaged over probes,
is the Hessian's diagonal."""

from typing import Any

import numpy as np
import pytest
import torch

from core.optim import OPTIMIZERS
from core.optim.curvature import hessian_vector, probe, sampled_label_loss, twice_differentiable
from core.optim.sophia import Sophia
from core.spec.optimizers import SophiaG, SophiaH
from tests import tiny


def test_unbiased_on_a_softmax_regression() -> None:
    positions, inputs, classes, draws = 6, 3, 4, 4000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(positions, inputs, generator=generator)
    weights = torch.nn.Parameter(torch.randn(classes, inputs, generator=generator))
    p = torch.softmax(x @ weights.detach().T, -1)
    diagonal = torch.einsum("bv,bj->vj", p * (1 - p), x * x) / positions

    # With b2 = 0 the state is the estimate itself.
    optimizer = Sophia([weights], lr=1, betas=(0.9, 0.0), gamma=1, eps=1e-12, weight_decay=0)
    estimates = []
    for _ in range(draws):
        optimizer.zero_grad()
        sampled_label_loss(x @ weights.T, positions, torch.rand(positions, generator=generator)).backward()
        optimizer.update_curvature(positions)
        estimates.append(optimizer.state[weights]["h"].clone())
    stacked = torch.stack(estimates)
    error = stacked.std(0) / draws**0.5
    assert float((error / diagonal).max()) < 0.1, "too few draws to tell a wrong factor"
    assert float(((stacked.mean(0) - diagonal) / error).abs().max()) < 4


@pytest.fixture(scope="module")
def sets() -> dict[str, Any]:
    return {"forget": tiny.rows(1, [(3, 4), (6, 2)], vocab=7), "retain": tiny.rows(2, [(2, 5), (12, 1)], vocab=7)}


@pytest.mark.parametrize("on", ["retain", "forget", "both"])
def test_the_trainers_estimate_is_of_the_sets_asked_for(on: str, sets: dict[str, Any]) -> None:
    model = tiny.llama(vocab=7, hidden=8, layers=1)
    counted = [row for name in ("forget", "retain") if on in (name, "both") for row in sets[name]]
    exact = gauss_newton(model, counted)
    optimizer = {"name": "sophia_g", "lr": 1e-30, "betas": (0.9, 0.5), "weight_decay": 0, "curvature_on": on}
    draws = []
    for seed in range(300):
        # Two rows a step are the whole set; the small budget runs them one by one.
        wanted = tiny.spec("ascent", optimizer, seed=seed, batch_size=2, micro_batch_tokens=16)
        trainer = tiny.trainer(wanted, model, sets)
        trainer.run(tiny.silent, tiny.STOP, lambda: None, lambda: None)
        # The first average starts from 0, so that it is half the estimate.
        draws.append([2 * float(trainer.optimizer.state[p]["h"].sum()) for p in model.parameters()])
    means, errors = np.mean(draws, 0), np.std(draws, 0) / len(draws) ** 0.5
    seen = errors > 0
    assert np.abs((means - exact)[seen] / errors[seen]).max() < 4
    assert np.median(errors[seen] / exact[seen]) < 0.15, "too few draws to tell a wrong factor"


@pytest.mark.parametrize(("draw", "label"), [(0.0, 1), (0.4999, 1), (0.5001, 2), (1 - 2**-24, 2)])
def test_no_draw_gives_a_label_that_cannot_be(draw: float, label: int) -> None:
    logits = torch.tensor([[-1e4, 1.0, 1.0, -1e4]])
    logits.requires_grad_()
    sampled_label_loss(logits, 1, torch.tensor([draw])).backward()
    assert logits.grad is not None
    assert int(logits.grad.argmin()) == label


def test_labels_do_not_depend_on_how_the_step_is_cut() -> None:
    sets = {"forget": tiny.rows(1, [(3, 9), (6, 12), (4, 10)]), "retain": tiny.rows(2, [(5, 8), (2, 20), (9, 11)])}
    optimizer = {"name": "sophia_g", "lr": 1e-30, "weight_decay": 0, "curvature_on": "both"}
    estimates = []
    for budget in (16, 40, 4096):
        wanted = tiny.spec("ascent", optimizer, batch_size=3, micro_batch_tokens=budget)
        trainer = tiny.trainer(wanted, tiny.llama(), sets)
        trainer.run(tiny.silent, tiny.STOP, lambda: None, lambda: None)
        estimates.append([trainer.optimizer.state[p]["h"] for p in trainer.parameters])
    for other in estimates[1:]:
        for h, same in zip(estimates[0], other, strict=True):
            torch.testing.assert_close(h, same, rtol=1e-3, atol=1e-6 * float(h.max()))


def test_a_row_that_a_step_has_twice_draws_labels_of_its_own_each_time() -> None:
    """Else the noise of its copies would add up before it is squared, and the estimate grow with their number."""
    rows = {"forget": tiny.rows(1, [(3, 6)])}
    optimizer = {"name": "sophia_g", "lr": 1e-30, "weight_decay": 0, "curvature_on": "forget"}
    model = tiny.llama()

    def total(batch: int) -> float:
        sums = []
        for seed in range(60):
            wanted = tiny.spec("ascent", optimizer, seed=seed, batch_size=batch)
            trainer = tiny.trainer(wanted, model, rows)
            trainer.run(tiny.silent, tiny.STOP, lambda: None, lambda: None)
            sums.append(sum(float(trainer.optimizer.state[p]["h"].sum()) for p in trainer.parameters))
        return sum(sums) / len(sums)

    assert total(4) / total(1) == pytest.approx(1, abs=0.3)


def gauss_newton(model: Any, rows: list[Any]) -> np.ndarray[Any, Any]:
    """The diagonal's sum over each parameter: the mean over positions of the expected squared gradient of -log p."""
    sums = np.zeros(len(list(model.parameters())))
    positions = 0
    for row in rows:
        log_p = torch.log_softmax(model(torch.tensor([row.ids])).logits[0, row.start - 1 : -1], -1)
        positions += len(log_p)
        for at in log_p:
            for label in at:
                pulls = torch.autograd.grad(label, list(model.parameters()), retain_graph=True)
                sums += label.exp().item() * np.array([float((g * g).sum()) for g in pulls])
    return sums / positions


def quadratic(seed: int = 0, size: int = 6) -> tuple[torch.nn.Parameter, torch.Tensor]:
    """A point, and a symmetric matrix that is the Hessian of `0.5 x A x` there."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64)), a + a.T


def test_hutchinson_is_the_hessians_diagonal_on_average() -> None:
    x, a = quadratic()
    generator = torch.Generator().manual_seed(1)
    draws = []
    for _ in range(4000):
        u = probe([x], generator)
        (product,) = hessian_vector(0.5 * x @ a @ x, [x], u)
        torch.testing.assert_close(product, a @ u[0])
        draws.append(u[0] * product)
    stacked = torch.stack(draws)
    error = stacked.std(0) / len(draws) ** 0.5
    assert float(((stacked.mean(0) - a.diagonal()) / error).abs().max()) < 4
    assert float(error.max()) < 0.1 * float(a.diagonal().abs().max()), "too few draws to tell a wrong factor"


def test_of_a_diagonal_hessian_one_probe_tells_all_but_its_own_square() -> None:
    x, a = quadratic()
    diagonal = a.diagonal()
    (u,) = probe([x], torch.Generator().manual_seed(3))
    (product,) = hessian_vector((0.5 * diagonal * x * x).sum(), [x], [u])
    torch.testing.assert_close(product / u, diagonal)


def test_hessian_products_of_micro_batches_sum_to_the_steps() -> None:
    model = tiny.llama()
    parameters = list(model.parameters())
    rows = tiny.rows(0, [(3, 4), (2, 6), (5, 3)])
    u = probe(parameters, torch.Generator().manual_seed(0))
    torch.testing.assert_close(u, probe(parameters, torch.Generator().manual_seed(0)), rtol=0, atol=0)

    def product(counted: Any) -> list[torch.Tensor]:
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(e.ids) for e in counted], batch_first=True)
        with twice_differentiable():
            logits = model(ids).logits
        scores = torch.log_softmax(logits, -1)
        picked = [scores[i, e.start - 1 : len(e.ids) - 1].gather(1, answer(e)) for i, e in enumerate(counted)]
        return hessian_vector(-torch.cat(picked).sum(), parameters, u)

    def answer(example: Any) -> torch.Tensor:
        return torch.tensor(example.ids[example.start :])[:, None]

    whole, parts = product(rows), [product([row]) for row in rows]
    for together, *apart in zip(whole, *parts, strict=True):
        torch.testing.assert_close(together, torch.stack(apart).sum(0), rtol=1e-3, atol=1e-4 * float(together.max()))
    assert all(float(t.abs().max()) > 0 for t in whole)


def test_a_loss_without_second_derivative_has_none() -> None:
    x, other = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    u = probe([x, other], torch.Generator())
    for loss in (x.sum(), (x**2).sum()):
        _, untouched = hessian_vector(loss, [x, other], u)
        assert not untouched.any()
    assert not hessian_vector(x.sum(), [x, other], u)[0].any()


def test_each_sophia_takes_its_own_estimate_in() -> None:
    p = torch.nn.Parameter(torch.zeros(3))
    given = torch.tensor([0.5, -2.0, 3.0])
    for name, spec, wanted in (
        ("sophia_g", SophiaG(betas=(0.9, 0.75)), 0.25 * 6 * given * given),
        ("sophia_h", SophiaH(betas=(0.9, 0.75)), 0.25 * 6 * given),
    ):
        row = OPTIMIZERS[name]
        optimizer = row.build([p], spec)
        assert row.curvature is not None
        curvature = row.curvature(spec)
        p.grad = given.clone()
        curvature.update(optimizer, 6)
        torch.testing.assert_close(optimizer.state[p]["h"], wanted)
        p.grad = torch.zeros(3)
        curvature.update(optimizer, 6)
        torch.testing.assert_close(optimizer.state[p]["h"], 0.75 * wanted)


@pytest.mark.parametrize("make", [SophiaG, SophiaH])
def test_an_estimate_is_due_every_so_many_steps(make: Any) -> None:
    spec = make(every=3, curvature_on="both")
    row = OPTIMIZERS[spec.name].curvature
    assert row is not None
    curvature = row(spec)
    assert [step for step in range(8) if curvature.due(step)] == [0, 3, 6]
    assert set(curvature.sets) == {"forget", "retain"}
    assert row(make(curvature_on="forget")).sets == ("forget",)
    assert curvature.estimate == {"sophia_g": "gauss_newton_bartlett", "sophia_h": "hutchinson"}[spec.name]
