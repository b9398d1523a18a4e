"""Gauss-Newton-Bartlett is unbiased: averaged over sampled labels it is the Gauss-Newton diagonal, known exactly for a
softmax regression, and computable label by label for a small model."""

from typing import Any

import numpy as np
import pytest
import torch

from core.optim.curvature import sampled_label_loss
from core.optim.sophia import Sophia, sophia_
from core.tokens import pad
from tests import tiny


def test_unbiased_on_a_softmax_regression() -> None:
    positions, inputs, classes, draws = 6, 3, 4, 4000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(positions, inputs, generator=generator)
    weights = torch.nn.Parameter(torch.randn(classes, inputs, generator=generator))
    p = torch.softmax(x @ weights.detach().T, -1)
    diagonal = torch.einsum("bv,bj->vj", p * (1 - p), x * x) / positions

    # With b2 = 0 the state is the estimate itself.
    optimizer = Sophia([weights], sophia_, lr=1, betas=(0.9, 0.0), gamma=1, eps=1e-12, weight_decay=0)
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


def gauss_newton(model: Any, rows: list[Any]) -> np.ndarray[Any, Any]:
    """The diagonal's sum over each parameter: the mean over positions of the expected squared gradient of -log p."""
    sums = np.zeros(len(list(model.parameters())))
    positions = 0
    for row in rows:
        batch = pad([row], torch.device("cpu"))
        log_p = torch.log_softmax(model(batch.ids).logits[0, batch.at_time], -1)
        positions += len(log_p)
        for at in log_p:
            for label in at:
                pulls = torch.autograd.grad(label, list(model.parameters()), retain_graph=True)
                sums += label.exp().item() * np.array([float((g * g).sum()) for g in pulls])
    return sums / positions
