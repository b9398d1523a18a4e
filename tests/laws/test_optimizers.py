"""Each optimizer against its formula, written out here in numpy, and the laws of Sophia's clipped step."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import Parameter

from core.optim import OPTIMIZERS
from core.spec.optimizers import AdamW, SophiaG, Soul
from tests import tiny

Array = NDArray[np.float64]
# One parameter is larger than the pieces in which it is walked, and its last piece is not a whole one.
SHAPES = [(70_001,), (3, 5), (2, 3, 4)]


def run(build: Callable[[list[Parameter]], torch.optim.Optimizer], steps: int, curve_every: int = 0) -> list[Array]:
    """The parameters after some steps on random gradients; where asked, curvature from other random gradients first."""
    draw = np.random.default_rng(0)
    parameters = [Parameter(torch.tensor(draw.normal(size=shape), dtype=torch.float32)) for shape in SHAPES]
    optimizer = build(parameters)
    for step in range(steps):
        if curve_every and step % curve_every == 0:
            for p in parameters:
                p.grad = torch.tensor(draw.normal(size=p.shape) / 50, dtype=torch.float32)
            optimizer.update_curvature(64)  # type: ignore[attr-defined]
        for p in parameters:
            # Gradients of very different sizes: some coordinates are clipped and some are not.
            p.grad = torch.tensor(draw.normal(size=p.shape) * 10 ** draw.uniform(-4, 0, p.shape), dtype=torch.float32)
        optimizer.step()
    return [p.detach().numpy().astype(np.float64) for p in parameters]


def by_hand(update: Callable[[Array, Array, dict[str, Array]], Array], steps: int, curve_every: int = 0) -> list[Array]:
    """The same run in double precision; `update` gives the new parameter, `state["curve"]` is the sampled gradient."""
    draw = np.random.default_rng(0)
    parameters = [draw.normal(size=shape) for shape in SHAPES]
    states: list[dict[str, Array]] = [{} for _ in SHAPES]
    for step in range(steps):
        for p, state in zip(parameters, states, strict=True):
            state.pop("curve", None)
            if curve_every and step % curve_every == 0:
                state["curve"] = draw.normal(size=p.shape) / 50
        gradients = [draw.normal(size=p.shape) * 10 ** draw.uniform(-4, 0, p.shape) for p in parameters]
        parameters = [update(p, g, s) for p, g, s in zip(parameters, gradients, states, strict=True)]
    return parameters


def same(found: Sequence[Array], wanted: Sequence[Array]) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_sophia_g_is_the_paper_written_out() -> None:
    # An eps of the size of gamma h: a sum in place of the maximum would show.
    lr, (b1, b2), gamma, eps, decay = 0.05, (0.9, 0.8), 0.7, 0.003, 0.3

    def update(theta: Array, g: Array, state: dict[str, Array]) -> Array:
        m, h = state.get("m", np.zeros_like(theta)), state.get("h", np.zeros_like(theta))
        if "curve" in state:
            h = b2 * h + (1 - b2) * 64 * state["curve"] ** 2
        m = b1 * m + (1 - b1) * g
        state |= {"m": m, "h": h}
        return theta * (1 - lr * decay) - lr * np.clip(m / np.maximum(gamma * h, eps), -1, 1)

    spec = SophiaG(lr=lr, betas=(b1, b2), gamma=gamma, eps=eps, weight_decay=decay, every=3)
    same(run(lambda p: OPTIMIZERS["sophia_g"].build(p, spec), 8, curve_every=3), by_hand(update, 8, curve_every=3))


def test_soul_is_its_published_step_written_out() -> None:
    lr, (b1, b2), rho, decay = 0.05, (0.9, 0.95), 0.04, 0.2

    def update(theta: Array, g: Array, state: dict[str, Array]) -> Array:
        m, h = state.get("m", np.zeros_like(theta)), state.get("h", np.zeros_like(theta))
        h = b2 * h + (1 - b2) * g * g
        m = b1 * m + (1 - b1) * g  # once where the curvature is taken,
        m = b1 * m + (1 - b1) * g  # and once more in the step itself
        state |= {"m": m, "h": h}
        ratio = np.minimum(np.abs(m) / (rho * 5120 * h + 1e-15), 1)
        return theta * (1 - lr * decay) - lr * np.sign(m) * ratio

    spec = Soul(lr=lr, betas=(b1, b2), rho=rho, weight_decay=decay)
    same(run(lambda p: OPTIMIZERS["soul"].build(p, spec), 8), by_hand(update, 8))


def test_adamw_is_torchs() -> None:
    spec = AdamW(lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    reference = run(lambda p: torch.optim.AdamW(p, 0.02, (0.8, 0.95), 1e-6, 0.3, foreach=False), 6)
    same(run(lambda p: OPTIMIZERS["adamw"].build(p, spec), 6), reference)


def test_without_curvature_sophia_takes_the_sign_or_the_gradient_over_eps() -> None:
    lr, eps = 0.5, 1e-6
    g = torch.tensor([0.0, 1e-7, -4e-7, 1e-6, -1e-6, 3e-2, -5.0])
    p = Parameter(torch.zeros(7))
    p.grad = g.clone()
    optimizer = OPTIMIZERS["sophia_g"].build([p], SophiaG(lr=lr, betas=(0.0, 0.9), eps=eps, weight_decay=0))
    optimizer.step()
    moved = torch.where(g.abs() >= eps, lr * g.sign(), lr * g / eps)
    torch.testing.assert_close(-p.detach(), moved)
    clipped = OPTIMIZERS["sophia_g"].clip_fraction
    assert clipped is not None
    assert clipped(optimizer) == pytest.approx(4 / 7)


def test_an_embedding_row_never_seen_does_not_move() -> None:
    model = tiny.llama()
    model.requires_grad_(False)
    embedding = model.get_input_embeddings().weight.requires_grad_()
    wanted = tiny.spec(
        "ascent", {"name": "sophia_g", "lr": 0.1, "weight_decay": 0, "curvature_on": "forget", "every": 2}
    )
    (row,) = tiny.rows(0, [(4, 6)])
    before = embedding.detach().clone()
    tiny.trainer(wanted, model, {"forget": [row]}, steps=6).run(tiny.silent, tiny.STOP, lambda: None, lambda: None)
    moved = (embedding.detach() != before).any(1)
    assert {i for i in range(tiny.VOCAB) if moved[i]} == set(row.ids[:-1])


def test_clip_fraction_counts_coordinates_of_all_parameters() -> None:
    small, large = Parameter(torch.zeros(30)), Parameter(torch.zeros(10, 7))
    optimizer: Any = OPTIMIZERS["soul"].build([small, large], Soul(lr=1e-3, betas=(0.0, 0.0), rho=1 / 5120))
    # With these betas the ratio is |g| / g^2: coordinates of at most 1 are clipped.
    small.grad = torch.full((30,), 0.5)
    large.grad = torch.full((10, 7), 4.0)
    large.grad[0] = -1.0
    optimizer.step()
    clipped = OPTIMIZERS["soul"].clip_fraction
    assert clipped is not None
    assert clipped(optimizer) == pytest.approx((30 + 7) / 100)
