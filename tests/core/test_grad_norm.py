"""The norm of a row's gradient: that of autograd by hand, of the model as it is, which it leaves as it was."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from core import adapters
from core.errors import Stopped
from core.evaluation.grad_norm import grad_norms
from core.events import StopFlag
from core.forward import generating
from core.spec.training import LoraAdapter
from core.tokens import Example
from tests import tiny
from tests.core.test_architectures import FAMILIES

ROWS = tiny.rows(3, [(3, 6), (9, 2), (1, 12), (5, 4)])


def made(family: str) -> Any:
    return tiny.shaken(AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family])), 0)


def by_hand(model: Any, row: Example) -> float:
    """In double precision, by transformers' own forward pass and loss; the last token is the end of sequence."""
    fine = copy.deepcopy(model).double()
    fine.requires_grad_(True)
    ids = torch.tensor([row.ids[:-1]])
    labels = ids.clone()
    labels[:, : row.start] = -100
    with generating(fine):
        fine(input_ids=ids, labels=labels).loss.backward()
    return math.sqrt(sum(float(p.grad.square().sum()) for p in fine.parameters() if p.grad is not None))


def norms(model: Any, rows: Sequence[Example] = ROWS) -> list[float | None]:
    return grad_norms(model, rows, tiny.STOP)


@pytest.mark.parametrize("family", ["llama", "llama, tied", "gpt2", "opt", "pythia", "qwen2", "gemma3"])
def test_it_is_autograds_by_hand(family: str) -> None:
    model = made(family)
    assert norms(model) == pytest.approx([by_hand(model, row) for row in ROWS], rel=1e-4)


def test_each_row_is_alone_however_they_come() -> None:
    model = made("llama")
    together = norms(model)
    assert len(set(together)) == len(ROWS)
    assert norms(model, ROWS[::-1]) == together[::-1]
    assert [norms(model, [row])[0] for row in ROWS] == together
    with generating(model):
        assert norms(model) == pytest.approx(together, rel=1e-4), "padded, as families that do not pack"


def test_end_of_sequence_is_not_counted() -> None:
    model = made("llama")
    (row,) = tiny.rows(4, [(4, 5)])
    without = Example(row.ids[:-1], row.start, False)
    assert norms(model, [row]) == pytest.approx(norms(model, [without]), rel=1e-6)
    nothing = Example(row.ids[: row.start + 1], row.start, True)
    assert norms(model, [nothing, row]) == [None, *norms(model, [row])]
    assert norms(model, []) == []


def test_frozen_weights_count_and_nothing_is_left() -> None:
    model = made("llama")
    wanted = norms(model)
    for name, p in model.named_parameters():
        p.requires_grad_("layers.1" in name)
    one = model.model.layers[1].mlp.up_proj.weight
    one.grad = torch.ones_like(one)
    flags = [p.requires_grad for p in model.parameters()]
    weights = [p.clone() for p in model.parameters()]
    assert norms(model) == wanted
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(p, before) for p, before in zip(model.parameters(), weights, strict=True))
    assert torch.equal(one.grad, torch.ones_like(one)), "a gradient that was there is still there"
    assert [p.grad is None for p in model.parameters()].count(False) == 1
    assert not model.training


def test_adapters_count_as_merged() -> None:
    plain = made("llama")
    wanted = norms(plain)
    model = made("llama")
    adapters.inject(model, LoraAdapter(rank=2), ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"], 0)
    flags = [p.requires_grad for p in model.parameters()]
    assert norms(model) == pytest.approx(wanted, rel=1e-5), "adapters that add nothing change nothing"
    for name, p in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(p, std=0.3)
    apart = norms(model)
    assert apart != pytest.approx(wanted, rel=1e-2)
    assert [p.requires_grad for p in model.parameters()] == flags
    adapters.merge(model)
    assert apart == pytest.approx(norms(model), rel=1e-4)


def test_it_says_how_far_it_is_and_a_stop_is_heeded_between_rows() -> None:
    model, stop = made("llama"), StopFlag()
    for p in model.parameters():
        p.requires_grad_(False)
    done: list[int] = []

    def advance(rows: int) -> None:
        done.append(rows)
        if len(done) == 2:
            stop.set()

    with pytest.raises(Stopped):
        grad_norms(model, ROWS, stop, advance)
    assert done == [1, 1]
    assert not any(p.requires_grad for p in model.parameters())


def test_a_row_once_learnt_pulls_less() -> None:
    model = made("llama")
    before = norms(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=torch.tensor([ROWS[0].ids]), labels=torch.tensor([ROWS[0].ids])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    learnt, *others = norms(model)
    assert learnt is not None
    assert before[0] is not None
    assert learnt < 0.2 * before[0]
    assert all(other is not None and other > 3 * learnt for other in others)
