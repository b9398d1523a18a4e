"""Relearning is the fine-tuning that anyone would do with the weights, on rows that are not those it is judged by."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from core import model as models
from core.attacks import attacked
from core.attacks.relearn import gradient
from core.attacks.target import drawn
from core.data.batches import rows_of_step
from core.data.encode import encode
from core.data.jsonl import read_file
from core.forward import collate, head, hidden_states, packs
from core.report.schema import Absent
from core.spec.attacks import Relearn
from core.tokens import Encoder, Example
from tests import tiny
from tests.core.attacking import FORGET, RETAIN, Seen, a_set, losses, made, probability, target, unchanged
from tests.models import Reciter


def by_hand(model: Any, lessons: Sequence[Example], spec: Relearn, seed: int) -> None:
    """The fine-tuning as one would write it: a row at a time through the model's own forward pass and loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, weight_decay=0.0)
    for step in range(spec.steps):
        rows = [lessons[i] for i in rows_of_step(step, len(lessons), spec.batch_size, seed=seed, stream=2)]
        tokens = sum(row.answer_tokens for row in rows)
        for row in rows:
            ids = torch.tensor([row.ids])
            labels = ids.clone()
            labels[0, : row.start] = -100
            (model(input_ids=ids, labels=labels).loss * row.answer_tokens / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("family", ["llama, tied", "gpt2", "opt", "gpt_neox"])
def test_relearning_is_plain_fine_tuning(family: str) -> None:
    model = made(family)
    other = copy.deepcopy(model)
    other.set_attn_implementation("sdpa")
    spec = Relearn(rows=2, steps=4, batch_size=3, lr=1e-3)
    seen = Seen(model)
    rows = attacked(spec, target(model, seen, seed=5))
    lessons = drawn(FORGET, 2, 5, stream=3)
    assert set(seen.data.examples) == set(FORGET) - set(lessons)
    by_hand(other, lessons, spec, 5)
    assert isinstance(rows, list)
    wanted = losses(other, seen.data.examples)
    assert [row.nll for row in rows] == pytest.approx([row.nll for row in wanted], rel=1e-3)
    # It went somewhere.
    untaught = losses(model, seen.data.examples)
    assert max(abs(a.nll - b.nll) / a.nll for a, b in zip(wanted, untaught, strict=True)) > 0.02


def test_a_step_is_a_mean_over_its_tokens_whatever_number_of_passes_it_takes() -> None:
    model = tiny.llama()
    whole, found = gradient(target(model), FORGET), tiny.gradients(model)
    model.zero_grad()
    assert gradient(target(model), FORGET, at_once=12) == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(tiny.gradients(model), found, rtol=1e-4, atol=1e-6)


def test_a_step_moves_no_weight_further_than_the_rate_and_frozen_ones_too() -> None:
    model = tiny.llama()
    model.requires_grad_(False)
    seen = Seen(model)
    attacked(Relearn(rows=2, steps=1, batch_size=2, lr=1e-3), target(model, seen))
    for name, p in model.named_parameters():
        moved = (seen.weights[name] - p).abs()
        assert 0.5e-3 < float(moved.max()) <= 1.01e-3


def test_at_most_half_of_the_rows_are_given_away() -> None:
    seen = Seen(tiny.llama())
    attacked(Relearn(rows=100, steps=1), target(seen.model, seen))
    assert len(seen.data.examples) == 3


def test_a_row_that_was_relearnt_is_not_scored_where_it_stands_twice() -> None:
    sets = {"forget": a_set([*FORGET[:2], *FORGET[:2]])}
    for seed in range(4):
        seen = Seen(tiny.llama())
        attacked(Relearn(rows=1, steps=1), target(seen.model, seen, sets=sets, seed=seed))
        assert len(seen.data.examples) == 2
        assert len(set(seen.data.examples)) == 1


def test_related_text_is_relearnt_and_every_forget_row_scored() -> None:
    model = tiny.llama()
    sets = {"forget": a_set(FORGET), "retain": a_set([*FORGET[:2], RETAIN[0]])}
    spec = Relearn(on="retain", rows=8, steps=30, batch_size=1, lr=3e-3)
    taught: list[float] = []
    seen = Seen(model, lambda: taught.append(losses(model, RETAIN)[0].nll))
    attacked(spec, target(model, seen, sets=sets))
    assert seen.data.examples == FORGET
    assert taught[0] < 0.3 * losses(model, RETAIN)[0].nll
    # A forget row among the retain rows teaches nothing: only the third row was trained on.
    alone = Seen(model)
    attacked(spec, target(model, alone, sets={"forget": a_set(FORGET), "retain": a_set(RETAIN[:1])}))
    assert all(torch.equal(seen.weights[name], w) for name, w in alone.weights.items())


@pytest.mark.parametrize(
    ("spec", "sets", "reason"),
    [
        (Relearn(), {"forget": FORGET[:1]}, "there is a single forget row"),
        (Relearn(), {"forget": FORGET[:1] * 4}, "all forget rows are alike"),
        (Relearn(on="retain"), {"forget": FORGET}, "there is no retain set to relearn from"),
        (Relearn(on="retain"), {"forget": FORGET, "retain": FORGET[1:]}, "every retain row is word for word"),
    ],
)
def test_where_nothing_can_be_relearnt(spec: Any, sets: dict[str, Any], reason: str) -> None:
    model = tiny.llama()
    with unchanged(model):
        found = attacked(spec, target(model, sets={name: a_set(rows) for name, rows in sets.items()}))
    assert isinstance(found, Absent)
    assert found.absent.startswith(reason)


def test_relearning_that_diverges_says_when() -> None:
    model = tiny.llama()
    with torch.no_grad():
        model.lm_head.weight[0] = torch.inf
    found = attacked(Relearn(), target(model))
    assert isinstance(found, Absent)
    assert found.absent == "relearning diverged: the loss was nan at step 1"


def test_relearning_that_does_not_fit_says_what_it_needs() -> None:
    model = tiny.llama()

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    hook = model.model.layers[1].register_forward_pre_hook(full)
    with unchanged(model):
        found = attacked(Relearn(), target(model))
    hook.remove()
    assert isinstance(found, Absent)
    assert found.absent.startswith("out of memory: relearning trains every weight")


def test_what_was_only_hidden_is_relearnt(reciter: Reciter) -> None:
    model, tokenizer = models.load(reciter.model, torch.device("cpu"))
    encoder = Encoder(tokenizer, "plain", 128)
    sets = {name: encode(read_file(getattr(reciter, name), name, None), encoder, name) for name in ("forget", "retain")}
    assert packs(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # Gradient ascent, only until the rows are no longer recited.
    while probability(losses(model, sets["forget"].examples)) > 0.1:
        batch = collate(model, sets["forget"].examples)
        (-cross_entropy(head(model, hidden_states(model, batch)), batch.targets)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seen = Seen(model)
    with unchanged(model):
        found = attacked(Relearn(lr=1e-3), target(model, seen, encoder=encoder, sets=sets))
    assert isinstance(found, list)
    assert len(found) == 5
    assert probability(losses(model, seen.data.examples)) < 0.1
    assert probability(found) > 0.3
