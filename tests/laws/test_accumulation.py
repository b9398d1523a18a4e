"""A step's loss and gradients are of the step: into how many forward passes it is cut, and what a row is padded to or
batched with, changes nothing."""

from typing import Any

import pytest
import torch

from core.forward import packs
from core.methods import METHODS
from core.methods.retain import RETAIN_TERMS
from core.reference import Reference, add_sums
from core.tokens import Example
from tests import tiny
from tests.views import view_of

FORGET = [(2, 9), (11, 3), (7, 30), (9, 1), (4, 14)]
OTHERS = [(2, 4), (11, 8), (7, 2), (9, 16), (4, 1)]
RETAIN = [(20, 4), (3, 8), (1, 25), (5, 5), (10, 2), (8, 17)]
OPTIONS: dict[str, dict[str, Any]] = {
    "npo": {"beta": 0.4},
    "simnpo": {"delta": 0.5},
    "dpo": {"beta": 0.3},
    "retrain": {"base": "base"},
}
TRAINED = [name for name, row in METHODS.items() if row.loss is not None or name in ("zero", "retrain")]
# The methods that fix their retain term, as their spec classes say.
ONLY = {"task_vector": ["none"], "retrain": ["nll"], "zero": ["nll", "kl", "ce_ref", "hidden"]}
PAIRS = [(method, retain) for method in TRAINED for retain in ONLY.get(method, RETAIN_TERMS)]
Losses = dict[str, torch.Tensor]


def asked(method: str, retain: str) -> dict[str, Any]:
    weighted = {} if method in ("retrain", "task_vector") else {"weight": 1.5}
    term = {"name": retain} | ({"weight": 0.7} if retain != "none" else {})
    return {"name": method, "retain": term} | weighted | OPTIONS.get(method, {})


def step(method: dict[str, Any], budget: int, *, padded: bool = False) -> tuple[int, Losses, Losses]:
    """Passes, losses and gradients of one step of four rows a set, of a model that has left its reference."""
    model = tiny.llama(hidden=16)
    if padded:
        model.set_attn_implementation("sdpa")
    assert packs(model) is not padded
    sets = {"forget": tiny.rows(3, FORGET), "alternative": tiny.rows(6, OTHERS), "retain": tiny.rows(4, RETAIN)}
    trainer = tiny.trainer(tiny.spec(method, batch_size=4, micro_batch_tokens=budget), model, sets)
    tiny.nudge(model)
    passes = len(list(trainer.passes(trainer.names)))
    return passes, trainer.gradients(tiny.STOP), tiny.gradients(model)


def assert_same(one: tuple[Losses, Losses], other: tuple[Losses, Losses]) -> None:
    for name in ("forget", "retain"):
        torch.testing.assert_close(one[0][name], other[0][name], rtol=1e-5, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in one[1].values())
    assert largest > 0
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-4, atol=1e-5 * largest)


def test_every_method_that_trains_is_paired_with_every_retain_term_it_takes() -> None:
    assert len(PAIRS) == 5 * (len(TRAINED) - 3) + 6
    assert len(TRAINED) > 15


@pytest.mark.parametrize(("method", "retain"), PAIRS)
def test_one_row_a_pass_is_all_rows_in_one(method: str, retain: str) -> None:
    many, *cut = step(asked(method, retain), 16)
    one, *whole = step(asked(method, retain), 1_000_000)
    sets = (METHODS[method].loss is not None) + (retain != "none")
    assert (many, one) == (4 * sets, 1)
    assert_same((cut[0], cut[1]), (whole[0], whole[1]))


@pytest.mark.parametrize(("method", "retain"), [pair for i, pair in enumerate(PAIRS) if i % 3 == 0])
def test_padded_rows_are_packed_rows(method: str, retain: str) -> None:
    _, *packed = step(asked(method, retain), 1_000_000)
    _, *padded = step(asked(method, retain), 1_000_000, padded=True)
    assert_same((packed[0], packed[1]), (padded[0], padded[1]))


def left_padded(model: Any, rows: tuple[Example, ...]) -> torch.Tensor:
    """Logits that predict answer tokens, from transformers' own forward pass of rows padded on the left."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[0] * (width - len(row.ids)) + list(row.ids) for row in rows])
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=positions).logits
    return torch.cat([line[-row.answer_tokens - 1 : -1] for line, row in zip(logits, rows, strict=True)])


@pytest.mark.parametrize("name", [n for n, row in METHODS.items() if row.loss is not None and n != "rmu"])
def test_rows_padded_on_the_left_have_the_same_loss(name: str) -> None:
    model = tiny.llama(hidden=16)
    rows, others, kept = tiny.rows(3, FORGET), tiny.rows(6, OTHERS), tiny.rows(4, RETAIN)
    sets = {"forget": rows, "alternative": others, "retain": kept}
    retain = "none" if name == "task_vector" else "kl"
    wanted = tiny.spec(asked(name, retain), batch_size=len(rows))
    trainer = tiny.trainer(wanted, model, sets)
    then = copy_of_logits(model, rows, others)
    tiny.nudge(model)
    loss = trainer.gradients(tiny.STOP)["forget"]
    now = copy_of_logits(model, rows, others)
    views = []
    for before, after, each in zip(then, now, (rows, others), strict=True):
        targets = torch.tensor([t for row in each for t in row.ids[row.start :]])
        lengths = [row.answer_tokens for row in each]
        sums = view_of(before, targets, lengths).sums
        views.append(view_of(after, targets, lengths, reference_sums=sums, reference_logits=before))
    found = METHODS[name].loss
    assert found is not None
    torch.testing.assert_close(
        found(views[0].with_alternative(views[1]), wanted.method), loss.detach(), rtol=1e-5, atol=1e-5
    )


def copy_of_logits(model: Any, *sets: tuple[Example, ...]) -> list[torch.Tensor]:
    own = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    logits = [left_padded(model, rows) for rows in sets]
    model.set_attn_implementation(own)
    return logits


def test_a_sequence_has_one_likelihood_however_wide_its_batch() -> None:
    model, rows = tiny.llama(), tiny.rows(5, [*FORGET, *RETAIN])
    alone, together = Reference(), Reference()
    add_sums(alone, "x", model, rows, 1, tiny.STOP)
    add_sums(together, "x", model, rows, 1_000_000, tiny.STOP)
    torch.testing.assert_close(alone.sums["x"], together.sums["x"], rtol=1e-5, atol=1e-5)
    for row, total in zip(rows, alone.sums["x"].tolist(), strict=True):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            log_p = torch.log_softmax(model(ids).logits[0], -1)
        by_hand = -sum(float(log_p[t - 1, row.ids[t]]) for t in range(row.start, len(row.ids)))
        assert by_hand == pytest.approx(total, rel=1e-5)
