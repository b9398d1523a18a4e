"""The loop is an ordinary one: written out with transformers' loss and torch's AdamW, it ends with the same weights."""

import copy
import math
from typing import Any

import pytest
import torch

from core.data.batches import rows_of_step
from core.errors import Diverged, Stopped
from core.events import StopFlag
from core.reference import Reference, add_sums
from core.tokens import Example
from core.train import Trainer, steps_of
from tests import tiny

SETS = {
    "forget": tiny.rows(1, [(3, 5), (8, 2), (4, 11), (6, 6), (2, 3)]),
    "retain": tiny.rows(2, [(5, 4), (2, 13), (9, 1), (4, 4), (7, 7), (3, 9), (6, 2)]),
}


def mean_loss(model: Any, rows: list[Example]) -> torch.Tensor:
    """Mean over the answer tokens of all rows, by transformers, row after row."""
    total = torch.zeros(())
    for row in rows:
        labels = torch.tensor([[-100] * row.start + list(row.ids[row.start :])])
        total = total + model(torch.tensor([row.ids]), labels=labels).loss * row.answer_tokens
    return total / sum(row.answer_tokens for row in rows)


def test_the_same_weights_as_a_plain_loop() -> None:
    steps, batch = 6, 3
    method = {"name": "ascent", "weight": 0.5, "retain": {"name": "nll", "weight": 2}}
    optimizer = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}
    wanted = tiny.spec(
        method, optimizer, seed=11, batch_size=batch, warmup=0.4, max_grad_norm=0.3, micro_batch_tokens=32
    )
    model = tiny.llama()
    plain = copy.deepcopy(model)
    tiny.trainer(wanted, model, SETS, steps).run(tiny.silent, StopFlag(), lambda: None, lambda: None)

    adamw = torch.optim.AdamW(plain.parameters(), 1e-3, weight_decay=0.1, foreach=False)
    rates = [1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3]
    for step in range(steps):
        forget, retain = (
            [SETS[name][i] for i in rows_of_step(step, len(SETS[name]), batch, seed=11, stream=stream)]
            for stream, name in enumerate(("forget", "retain"))
        )
        adamw.zero_grad()
        (-0.5 * mean_loss(plain, forget) + 2 * mean_loss(plain, retain)).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.3)
        adamw.param_groups[0]["lr"] = 1e-3 * rates[step]
        adamw.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        # Adam divides by the gradient's size, so that where a gradient is nearly nothing its rounding is all there is.
        torch.testing.assert_close(p, q, rtol=0, atol=2e-5)


def test_soul_takes_its_curvature_from_the_clipped_gradient() -> None:
    model = tiny.llama()
    optimizer = {"name": "soul", "lr": 1e-4, "betas": (0.9, 0.75)}
    wanted = tiny.spec("ascent", optimizer, batch_size=5, max_grad_norm=0.01)
    trainer = tiny.trainer(wanted, model, {"forget": SETS["forget"]})
    trainer.gradients(StopFlag())
    gradients = tiny.gradients(model)
    norm = math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
    trainer.run(tiny.silent, StopFlag(), lambda: None, lambda: None)
    for name, p in model.named_parameters():
        clipped = gradients[name] * (0.01 / norm)
        torch.testing.assert_close(trainer.optimizer.state[p]["h"], 0.25 * clipped**2, rtol=1e-3, atol=1e-16)


def test_one_step_says_what_it_did() -> None:
    heard: list[dict[str, Any]] = []

    def emit(event: str, **fields: Any) -> None:
        heard.append({"event": event, **fields})

    method = {"name": "npo", "retain": "nll"}
    model = tiny.llama()
    trainer = tiny.trainer(tiny.spec(method, "sophia_g", batch_size=2), model, SETS, steps=3)
    losses = trainer.gradients(StopFlag())
    norm = math.sqrt(sum(float((g * g).sum()) for g in tiny.gradients(model).values()))
    trainer.run(emit, StopFlag(), lambda: None, lambda: None)
    assert [event["step"] for event in heard] == [1, 2, 3]
    first = heard[0]
    assert first["loss"] == pytest.approx(first["forget_loss"] + first["retain_loss"])
    assert first["forget_loss"] == pytest.approx(losses["forget"].item())
    assert first["retain_loss"] == pytest.approx(losses["retain"].item())
    assert first["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert 0 <= first["clip_fraction"] <= 1
    assert first["steps"] == 3
    assert [point["step"] for point in trainer.curve] == [1, 2, 3]
    alone = tiny.trainer(tiny.spec("ascent", batch_size=2), model, {"forget": SETS["forget"]})
    alone.run(emit, StopFlag(), lambda: None, lambda: None)
    assert heard[-1]["retain_loss"] is None
    assert heard[-1].get("clip_fraction") is None


def test_a_view_shows_each_set_its_own_rows() -> None:
    model = tiny.llama()
    wanted = tiny.spec({"name": "npo", "retain": "kl"}, batch_size=3, micro_batch_tokens=40)
    trainer = tiny.trainer(wanted, model, SETS)
    alone = {name: Reference() for name in SETS}
    for name, rows in SETS.items():
        add_sums(alone[name], name, model, rows, 1, StopFlag())
    seen: dict[str, list[int]] = {"forget": [], "retain": []}
    for _, one in trainer.passes(["forget", "retain"]):
        for name, view in trainer.objective._views(one, {"forget": [1], "retain": [1]}):
            seen[name] += one.rows[name]
            torch.testing.assert_close(view.sums, alone[name].sums[name][list(one.rows[name])])
            if view.reference.hidden is not None:
                torch.testing.assert_close(view.reference.hidden, view.hidden, rtol=1e-4, atol=1e-4)
            if view.reference.sums is not None:
                torch.testing.assert_close(view.reference.sums, view.sums)
    assert {name: sorted(rows) for name, rows in seen.items()} == {
        name: sorted(trainer.feed.rows(name, 0)) for name in SETS
    }


@pytest.mark.parametrize(("given", "steps"), [({}, 13), ({"epochs": 0.1}, 1), ({"epochs": 2}, 5), ({"steps": 7}, 7)])
def test_length_of_a_run(given: dict[str, Any], steps: int) -> None:
    assert steps_of(tiny.spec("ascent", **given), {"forget": tiny.rows(0, [(1, 1)] * 10)}) == steps


def trainer_of(model: Any, **training: Any) -> Trainer:
    return tiny.trainer(tiny.spec({"name": "ascent", "retain": "nll"}, **training), model, SETS, steps=9)


def test_watching_and_saving_happen_between_steps_and_a_stop_saves_first() -> None:
    model, stop = tiny.llama(), StopFlag()
    trainer = trainer_of(model, batch_size=2, checkpoint_every=3)
    saved: list[int] = []
    watched: list[int] = []

    def watch() -> None:
        watched.append(trainer.step)
        if trainer.step == 5:
            stop.set()

    with pytest.raises(Stopped):
        trainer.run(tiny.silent, stop, lambda: saved.append(trainer.step), watch)
    assert (watched, saved) == ([1, 2, 3, 4, 5], [3, 5])
    stop = StopFlag()
    trainer.run(tiny.silent, stop, lambda: saved.append(trainer.step), watch=lambda: None)
    assert (saved, trainer.step) == ([3, 5, 6], 9)


@pytest.mark.parametrize("poisoned", ["forget", "retain"])
def test_a_loss_that_is_no_number_names_the_step_and_takes_none(poisoned: str) -> None:
    model = tiny.llama(vocab=tiny.VOCAB + 1)
    harmless = Trainer(tiny.spec({"name": "ascent", "retain": "nll"}, batch_size=1), model, SETS, Reference(), 9)
    drawn = [harmless.feed.rows(poisoned, step)[0] for step in range(5)]
    row = SETS[poisoned][drawn[3]]
    spoilt = Example((tiny.VOCAB, *row.ids[1:]), row.start, row.ends)
    sets = SETS | {poisoned: tuple(spoilt if other is row else other for other in SETS[poisoned])}
    trainer = Trainer(harmless.spec, model, sets, Reference(), 9)
    for _ in range(3):
        trainer.one_step(StopFlag())
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny.VOCAB] = torch.inf
    with pytest.raises(Diverged, match="at optimizer step 4") as caught:
        trainer.run(tiny.silent, StopFlag(), lambda: None, lambda: None)
    assert drawn.index(drawn[3]) == 3
    assert caught.value.step == 4
    assert trainer.step == 3


def test_a_gradient_that_is_no_number_takes_no_step_either() -> None:
    model = tiny.llama()
    before = copy.deepcopy(model.state_dict())
    hook = model.get_output_embeddings().weight.register_hook(lambda gradient: gradient * torch.inf)
    trainer = tiny.trainer(tiny.spec("ascent", batch_size=2), model, {"forget": SETS["forget"]}, steps=2)
    with pytest.raises(Diverged, match="at optimizer step 1"):
        trainer.run(tiny.silent, StopFlag(), lambda: None, lambda: None)
    hook.remove()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
