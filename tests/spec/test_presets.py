"""Presets: what was published, and how it goes under a requester's own fields."""

import json
from copy import deepcopy
from typing import Any

import pytest

from core.errors import SpecError
from core.spec.finetune import parse as parse_finetuning
from core.spec.job import JobSpec, parse
from core.spec.presets import PRESETS, expand
from tests.spec.test_terms import SOUL

REST: dict[str, Any] = {
    "model": {"path": "models/small"},
    "data": {
        "forget": {"source": "jsonl", "path": "forget.jsonl"},
        "retain": {"source": "jsonl", "path": "retain.jsonl"},
    },
}
SECOND = "soul/tofu/GradDiff/second-order"


def request(name: str, **own: Any) -> dict[str, Any]:
    return {**deepcopy(REST), "preset": name, **own}


def resolved(name: str, **own: Any) -> JobSpec:
    return parse(expand(request(name, **own)))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_request_that_lacks_only_model_and_data(name: str) -> None:
    preset = PRESETS[name]
    assert preset.name == name
    assert preset.source
    assert set(preset.fields) <= {"method", "optimizer", "training"}
    spec = resolved(name)
    for part in ("optimizer", "training"):
        # Compared as JSON: a list of betas becomes a tuple.
        sent = json.loads(getattr(spec, part).model_dump_json())
        assert {key: sent[key] for key in preset.fields.get(part, {})} == preset.fields.get(part, {})


# Read off the configuration files once more, by hand: rate, retain weight, epochs, weight decay.
@pytest.mark.parametrize(
    ("name", "lr", "weight", "epochs", "decay"),
    [
        ("soul/tofu/GradDiff/first-order", 5e-6, 0.3, 5, 0.1),
        ("soul/tofu/GradDiff/second-order", 5e-6, 2, 5, 0.1),
        ("soul/tofu/GA+FT/second-order", 5e-6, 2, 5, 0.1),
        ("soul/tofu/CL+FT/first-order", 2e-5, 1, 5, 0.1),
        ("soul/tofu/PO/first-order", 2e-5, 1, 5, 0.1),
        ("soul/tofu/PO/second-order", 1e-5, 5, 5, 0.1),
        ("soul/detoxification/opt-1.3b/PO/first-order", 2e-5, 0.1, 5, 0),
        ("soul/detoxification/opt-1.3b/PO/second-order", 2e-5, 0.1, 5, 0),
        ("soul/detoxification/llama-2-7b/PO/first-order", 1e-5, 1, 10, 0),
        ("soul/detoxification/llama-2-7b/PO/second-order", 1e-5, 0.1, 10, 0),
    ],
)
def test_what_soul_published_is_what_runs(name: str, lr: float, weight: float, epochs: int, decay: float) -> None:
    spec = resolved(name)
    assert PRESETS[name].note == ""
    assert (spec.optimizer.lr, spec.optimizer.weight_decay) == (lr, decay)
    assert (spec.method.retain.name, spec.method.retain.weight) == ("nll", weight)
    assert (spec.training.epochs, spec.training.batch_size, spec.training.warmup) == (epochs, 4, 0.1)
    second = name.endswith("second-order")
    assert spec.optimizer.name == ("soul" if second else "adamw")
    assert spec.optimizer.betas == ((0.9, 0.95) if second else (0.9, 0.999))


def test_a_preset_of_soul_gives_a_rate_or_says_that_none_was_published() -> None:
    trained = {name: preset for name, preset in PRESETS.items() if "optimizer" in preset.fields}
    assert len(trained) < len(PRESETS)
    for name, preset in trained.items():
        assert ("lr" in preset.fields["optimizer"]) != ("optimizer.lr" in preset.note), name


@pytest.mark.parametrize("task", ["tofu", "copyright", "detoxification/opt-1.3b", "detoxification/llama-2-7b"])
def test_every_name_of_soul_has_its_presets_in_every_task(task: str) -> None:
    # l1sparse is l1_sparse; the last two train nothing.
    trained = set(SOUL) - {"l1sparse", "origin", "sys"}
    names = {f"soul/{task}/{method}/{order}-order" for method in trained for order in ("first", "second")}
    assert names | {f"soul/{task}/origin", f"soul/{task}/sys"} <= set(PRESETS)


def test_a_request_without_a_preset_stays_as_it_was() -> None:
    plain = {**REST, "method": "GA"}
    assert expand(plain) is plain
    assert expand([1]) == [1]


def test_own_fields_win_one_by_one() -> None:
    spec = resolved(
        SECOND,
        method={"retain": {"weight": 7.0}},
        optimizer={"lr": 3e-4},
        training={"batch_size": 2},
        seed=9,
    )
    assert (spec.method.name, spec.method.retain.name, spec.method.retain.weight) == ("ascent", "nll", 7.0)
    assert (spec.optimizer.name, spec.optimizer.lr, spec.optimizer.weight_decay) == ("soul", 3e-4, 0.1)
    assert (spec.training.batch_size, spec.training.epochs, spec.seed) == (2, 5, 9)


def test_own_steps_take_the_place_of_the_preset_s_epochs() -> None:
    spec = resolved(SECOND, training={"steps": 3})
    assert (spec.training.steps, spec.training.epochs, spec.training.batch_size) == (3, None, 4)


@pytest.mark.parametrize("given", ["NPO", {"name": "NPO"}])
def test_another_method_takes_nothing_from_the_preset_s(given: Any) -> None:
    spec = resolved(SECOND, method=given)
    assert (spec.method.name, spec.method.retain.weight) == ("npo", 1.0)
    assert spec.optimizer.name == "soul"


@pytest.mark.parametrize("given", ["adamw", {"name": "adamw"}])
def test_another_optimizer_takes_nothing_from_the_preset_s(given: Any) -> None:
    spec = resolved(SECOND, optimizer=given)
    assert spec.optimizer == parse({**REST, "method": "GA", "optimizer": "adamw"}).optimizer
    assert spec.method.retain.weight == 2.0


@pytest.mark.parametrize("given", ["none", {"name": "none"}])
def test_another_retain_term_takes_no_weight_from_the_preset_s(given: Any) -> None:
    assert resolved(SECOND, method={"retain": given}).method.retain.name == "none"


@pytest.mark.parametrize("given", ["GradDiff", {"name": "GradDiff"}])
def test_the_preset_s_own_method_named_again_changes_nothing(given: Any) -> None:
    assert resolved(SECOND, method=given) == resolved(SECOND)


def test_expanding_changes_neither_the_request_nor_the_preset() -> None:
    before, sent = deepcopy(PRESETS[SECOND]), request(SECOND, method={"retain": {"weight": 7.0}})
    copy = deepcopy(sent)
    made = expand(sent)
    made["training"]["epochs"] = 99
    made["optimizer"]["betas"].append(1)
    assert "preset" not in made
    assert (sent, PRESETS[SECOND]) == (copy, before)


def test_what_is_wrong_in_an_own_field_is_left_to_the_parser_to_name() -> None:
    with pytest.raises(SpecError) as caught:
        resolved(SECOND, training=5, optimizer={"lr": -1})
    assert {problem.param for problem in caught.value.problems} == {"training", "optimizer.lr"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("soul/tofu/GradDif/second-order", "soul/tofu/GradDif/second-order", f"Did you mean '{SECOND}'?"),
        ("open-unlearning/npo", "open-unlearning/npo", "Did you mean 'open-unlearning/NPO'? Allowed: open-unlearning/"),
        (
            "soul/tofu/NPO",
            "soul/tofu/NPO",
            "'soul/tofu/NPO/first-order'? Allowed: soul/tofu/NPO/first-order, soul/tofu/NPO/second-order.",
        ),
        ("x" * 99, "x" * 77 + "...", "Allowed: open-unlearning/CE-U, "),
        ("\ud800", r"\ud800", "Unknown preset"),
        ([[1]], [[1]], "name of a preset (got [[1]])"),
        (None, None, "name of a preset (got null)"),
    ],
)
def test_an_unknown_preset_is_refused_with_its_nearest_neighbour(name: Any, value: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        expand(request(name))
    (problem,) = caught.value.problems
    assert (problem.param, problem.value) == ("preset", value)
    assert message in problem.message
    problem.message.encode()


def test_a_preset_that_makes_a_model_is_for_fine_tuning_and_no_other_is() -> None:
    train = {"model": "m", "data": {"train": {"source": "jsonl", "path": "books.jsonl"}}}
    spec = parse_finetuning({**train, "preset": "soul/copyright/target-model", "training": {"batch_size": 3}})
    assert (spec.optimizer.name, spec.optimizer.lr, spec.training.epochs) == ("adamw", 1e-5, 10)
    assert (spec.training.batch_size, spec.training.warmup) == (3, 0)
    with pytest.raises(SpecError, match=r"is for requests that forget\. Allowed: soul/copyright/target-model\."):
        parse_finetuning({**train, "preset": SECOND})
    with pytest.raises(SpecError, match="Unknown field 'method'"):
        parse_finetuning({**train, "preset": "soul/copyright/target-model", "method": "FT"})
