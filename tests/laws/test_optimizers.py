"""Each optimizer against its formula, written out here in numpy, or against torch's own; the laws of Sophia's clipped
step; what holds of all of them: a folded clip, the update's norm, bits that do not depend on how they were computed."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import Parameter

from core.errors import SpecError
from core.optim import OPTIMIZERS, check_available, fold_clip, native
from core.optim.first_order import adamw, sgd
from core.optim.muon import is_hidden_matrix
from core.optim.sophia import Sophia, soul
from core.spec.optimizers import AdamW, AdamW8bit, Muon, Sgd, SophiaG, SophiaH, Soul
from tests import tiny

Array = NDArray[np.float64]
# One parameter is larger than the pieces in which it is walked, and its last piece is not a whole one.
SHAPES = [(270_001,), (3, 5), (2, 3, 4)]


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


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.8, False), (0.8, True)])
def test_sgd_is_torchs(momentum: float, nesterov: bool) -> None:
    spec = Sgd(lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.3)
    reference = run(lambda p: torch.optim.SGD(p, 0.1, momentum, weight_decay=0.3, nesterov=nesterov, foreach=False), 6)
    same(run(lambda p: OPTIMIZERS["sgd"].build(p, spec), 6), reference)


def test_muon_is_torchs_on_matrices_of_the_layers_and_adamw_on_the_rest() -> None:
    hyper: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.2}
    spec = Muon(lr=0.01, **hyper, betas=(0.8, 0.9), eps=1e-6)
    model, other = tiny.llama(), tiny.llama()
    optimizer = OPTIMIZERS["muon"].build(model.named_parameters(), spec)
    hidden = {name for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name}
    by_role = [[p for name, p in other.named_parameters() if (name in hidden) == wanted] for wanted in (True, False)]
    references = [
        torch.optim.Muon(by_role[0], 0.01, **hyper, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(by_role[1], 0.01, (0.8, 0.9), 1e-6, 0.2),
    ]
    assert len(hidden) == 2 * 7
    for step in range(3):
        draw = torch.Generator().manual_seed(step)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=draw)
            q.grad = p.grad.clone()
        for one in (optimizer, *references):
            one.step()
        # As accelerate does on wrapping, and torch on loading.
        optimizer.load_state_dict(optimizer.state_dict())
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


@pytest.mark.parametrize(
    ("name", "shape", "hidden"),
    [
        ("model.layers.3.mlp.down_proj.weight", (4, 8), True),
        ("transformer.h.0.attn.c_attn.weight", (4, 12), True),
        ("gpt_neox.layers.1.attention.dense.weight", (4, 4), True),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", (2, 4), True),
        ("model.layers.3.input_layernorm.weight", (4,), False),
        ("model.embed_tokens.weight", (9, 4), False),
        ("model.decoder.embed_positions.weight", (9, 4), False),
        ("transformer.wpe.weight", (9, 4), False),
        ("lm_head.weight", (9, 4), False),
        ("embed_out.weight", (9, 4), False),
    ],
)
def test_muon_takes_the_matrices_of_numbered_layers(name: str, shape: tuple[int, ...], hidden: bool) -> None:
    assert is_hidden_matrix(name, torch.zeros(shape)) is hidden


def test_without_curvature_sophia_takes_the_sign_or_the_gradient_over_eps() -> None:
    lr, eps = 0.5, 1e-6
    g = torch.tensor([0.0, 1e-7, -4e-7, 1e-6, -1e-6, 3e-2, -5.0])
    p = Parameter(torch.zeros(7))
    p.grad = g.clone()
    optimizer = OPTIMIZERS["sophia_g"].build([p], SophiaG(lr=lr, betas=(0.0, 0.9), eps=eps, weight_decay=0))
    optimizer.step()
    moved = torch.where(g.abs() >= eps, lr * g.sign(), lr * g / eps)
    torch.testing.assert_close(-p.detach(), moved)
    assert float(OPTIMIZERS["sophia_g"].report(optimizer)["clip_fraction"]) == pytest.approx(4 / 7)


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
    assert float(OPTIMIZERS["soul"].report(optimizer)["clip_fraction"]) == pytest.approx((30 + 7) / 100)


SPECS = [
    SophiaG(lr=0.01, weight_decay=0.3),
    SophiaH(lr=0.01, weight_decay=0.3),
    Soul(lr=0.01, weight_decay=0.3, rho=1 / 5120),
    AdamW(lr=0.01, weight_decay=0.3),
    Sgd(lr=0.1, weight_decay=0.3),
    Sgd(lr=0.1, momentum=0.9, nesterov=True),
    Muon(lr=0.01, weight_decay=0.3),
]
each_optimizer = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.name}{getattr(spec, 'momentum', '')}")


def stepped(spec: Any, steps: int = 4, clip: Callable[[Any, float], None] | None = None) -> tuple[Any, Any, list[Any]]:
    """The optimizer, its row and the parameters after some steps; `clip` scales each step's gradients."""
    row, draw = OPTIMIZERS[spec.name], torch.Generator().manual_seed(0)
    named = [
        (name, Parameter(torch.randn(shape, generator=draw)))
        for name, shape in (("layers.0.up.weight", (6, 9)), ("embed.weight", (20, 6)), ("norm.bias", (7,)))
    ]
    optimizer = row.build(named, spec)
    for step in range(steps):
        for _, p in named:
            p.grad = torch.randn(p.shape, generator=draw) * 10 ** (-4 * torch.rand(p.shape, generator=draw))
        if row.curvature and step % 2 == 0:
            row.curvature(spec).update(optimizer, 8.0)
        if clip:
            clip(optimizer, 0.5**step)  # Powers of two, so that nothing is rounded.
        optimizer.step()
    return optimizer, row, [p for _, p in named]


@each_optimizer
def test_a_folded_clip_is_a_clip(spec: Any) -> None:
    def scale(optimizer: Any, factor: float) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad.mul_(factor)

    def fold(optimizer: Any, factor: float) -> None:
        fold_clip(optimizer, torch.tensor(factor))

    unclipped, clipped, folded = (stepped(spec, clip=how)[2] for how in (None, scale, fold))
    assert all(torch.equal(one, other) for one, other in zip(clipped, folded, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(unclipped, folded, strict=True))


@each_optimizer
def test_a_folded_clip_holds_for_one_step(spec: Any) -> None:
    optimizer, _, _ = stepped(spec, clip=lambda optimizer, factor: fold_clip(optimizer, torch.tensor(factor)))
    assert all(group["grad_scale"] == 1.0 for group in optimizer.param_groups)


def test_an_optimizer_of_another_make_gets_its_gradients_scaled() -> None:
    p = Parameter(torch.ones(3))
    p.grad = torch.full((3,), 4.0)
    fold_clip(torch.optim.SGD([p, Parameter(torch.ones(1))]), torch.tensor(0.5))
    assert p.grad.tolist() == [2.0] * 3


@each_optimizer
def test_the_reported_norm_is_that_of_the_change(spec: Any) -> None:
    optimizer, row, parameters = stepped(spec)
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    moved = torch.cat([(p.detach() - old).double().flatten() for p, old in zip(parameters, before, strict=True)])
    report = row.report(optimizer)
    assert float(report["update_norm"]) == pytest.approx(float(moved.norm()), rel=1e-5)
    assert set(report) == {"update_norm"} | ({"clip_fraction"} if spec.name.startswith("so") else set())
    assert all(value.ndim == 0 for value in report.values())
    # Two processes that hold halves of equal sums: norms add as squares, fractions stay.
    doubled = row.report(optimizer, total=lambda sums: 2 * sums)
    assert float(doubled["update_norm"]) == pytest.approx(2**0.5 * float(report["update_norm"]))
    assert doubled.get("clip_fraction") == report.get("clip_fraction")


@each_optimizer
def test_the_same_steps_leave_the_same_bits(spec: Any) -> None:
    for one, other in zip(stepped(spec)[2], stepped(spec)[2], strict=True):
        assert torch.equal(one, other)


@each_optimizer
def test_the_state_is_all_in_tensors_and_enough_to_go_on_from(spec: Any) -> None:
    optimizer, row, parameters = stepped(spec)
    copies = [Parameter(p.detach().clone()) for p in parameters]
    names = ("layers.0.up.weight", "embed.weight", "norm.bias")
    resumed = row.build(list(zip(names, copies, strict=True)), spec)
    for p, copy in zip(parameters, copies, strict=True):
        assert all(isinstance(value, torch.Tensor) for value in optimizer.state[p].values())
        for slot, value in optimizer.state[p].items():
            resumed.state[copy][slot] = value.clone()
        copy.grad = p.grad.clone()
    optimizer.step()
    resumed.step()
    for p, copy in zip(parameters, copies, strict=True):
        assert torch.equal(p, copy)


@each_optimizer
def test_it_finds_the_bottom_of_a_bowl(spec: Any) -> None:
    row = OPTIMIZERS[spec.name]
    target = torch.linspace(-1, 1, 24).view(4, 6)
    p = Parameter(torch.zeros(4, 6))
    spec = spec.model_copy(update={"lr": 0.05, "weight_decay": 0.0})
    optimizer = row.build([("layers.0.weight", p)], spec)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = spec.lr * (400 - step) / 400
        p.grad = p.detach() - target
        if row.curvature and step % 10 == 0:
            row.curvature(spec).update(optimizer, 1.0)
        optimizer.step()
    assert float((p.detach() - target).abs().max()) < 0.02


WALKS: dict[str, Callable[..., Any]] = {
    "sophia": lambda p, build: Sophia(p, lr=0.01, gamma=0.05, build=build),
    "soul": lambda p, build: soul(p, lr=0.01, build=build),
    "adamw": lambda p, build: adamw(p, lr=0.01, build=build),
    "sgd": lambda p, build: sgd(p, lr=0.1, weight_decay=0.1, build=build),
    "momentum": lambda p, build: sgd(p, lr=0.1, momentum=0.9, weight_decay=0.1, build=build),
    "nesterov": lambda p, build: sgd(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, build=build),
}


@pytest.mark.parametrize("name", WALKS)
def test_built_code_leaves_the_bits_that_torch_leaves(name: str) -> None:
    if native.library() is None:
        assert "CI" not in os.environ, "the build server has a C compiler"
        pytest.skip("this machine has no C compiler, and takes the torch functions")

    def walked(build: bool) -> tuple[list[torch.Tensor], dict[str, float]]:
        draw = torch.Generator().manual_seed(0)
        # Rows of sums that are whole, broken, and one alone; pieces likewise.
        parameters = [Parameter(torch.randn(shape, generator=draw)) for shape in (*SHAPES, (4096,), (9, 4096))]
        optimizer = WALKS[name](parameters, build)
        for step in range(4):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=draw) * 10 ** (-6 * torch.rand(p.shape, generator=draw))
            if name == "sophia" and step % 2 == 0:
                optimizer.update_curvature(64)
            fold_clip(optimizer, torch.tensor(0.37))
            optimizer.step()
        left = [*parameters, *(value for p in parameters for value in optimizer.state[p].values())]
        return left, {key: float(value) for key, value in optimizer.report().items()}

    (built, told), (pieces, by_torch) = walked(True), walked(False)
    assert all(torch.equal(one, other) for one, other in zip(built, pieces, strict=True))
    assert told == pytest.approx(by_torch, rel=1e-4)
    assert told.get("clipped") == by_torch.get("clipped")


def test_small_models_build_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: pytest.fail("asked for a compiler"))
    p = Parameter(torch.zeros(1000))
    p.grad = torch.ones(1000)
    adamw([p], lr=0.1).step()


def test_without_a_compiler_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    p = Parameter(torch.zeros(10))
    p.grad = torch.full((10,), 2.0)
    sgd([p], lr=0.5, build=True).step()
    assert p.tolist() == [-1.0] * 10


def test_weights_in_bf16_keep_their_averages_in_fp32() -> None:
    p = Parameter(torch.ones(500, dtype=torch.bfloat16))
    optimizer = adamw([p], lr=0.25, weight_decay=0.0)
    p.grad = torch.full((500,), 2.0, dtype=torch.bfloat16)
    optimizer.step()
    assert {value.dtype for value in optimizer.state[p].values()} == {torch.float32}
    assert p.dtype == torch.bfloat16
    assert set(p.tolist()) == {0.75}


@pytest.mark.skipif(torch.cuda.is_available(), reason="it may be had here")
def test_eight_bits_are_refused_where_there_is_no_gpu() -> None:
    with pytest.raises(SpecError, match=r"optimizer.name: 'adamw_8bit' .* no CUDA device. Use 'adamw' here") as caught:
        check_available(AdamW8bit())
    assert caught.value.problems[0].param == "optimizer.name"
    with pytest.raises(SpecError):
        OPTIMIZERS["adamw_8bit"].build([Parameter(torch.zeros(1))], AdamW8bit())
    for spec in SPECS:
        check_available(spec)
