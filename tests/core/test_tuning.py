"""What trains is what was asked for and nothing else, and what is delivered is what was measured."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, PreTrainedModel

from core import adapters, tuning
from core.data.inputs import Inputs
from core.edits import Context
from core.edits.task_vector import subtract
from core.errors import ModelError, SpecError
from core.forward import collate, head, hidden_states, packs
from core.reference import Reference, add_sums
from core.spec.job import JobSpec
from tests import tiny

FORGET = tiny.rows(1, [(4, 5), (9, 3), (2, 8)])
RETAIN = tiny.rows(2, [(3, 6), (7, 2)])
SETS = {"forget": FORGET, "retain": RETAIN}
LORA: dict[str, Any] = {"name": "lora", "rank": 4}


def prepared(spec: JobSpec, model: PreTrainedModel | None = None) -> Any:
    return tuning.prepare(tiny.llama(layers=3) if model is None else model, spec)


def trains(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return head(model, hidden_states(model, collate(model, FORGET)))


def trained(spec: JobSpec, model: Any, steps: int = 3) -> Any:
    trainer = tiny.trainer(spec, model, SETS, steps)
    for _ in range(steps):
        trainer.one_step(tiny.STOP)
    return trainer


def sums(model: Any) -> Tensor:
    reference = Reference()
    add_sums(reference, "forget", model, FORGET, 4096, tiny.STOP)
    return reference.sums["forget"]


def test_the_reference_is_the_model_with_its_adapters_off() -> None:
    model = tiny.llama()
    original = sums(model)
    spec = tiny.spec({"name": "npo", "retain": "kl"}, {"name": "adamw", "lr": 0.01}, adapter="lora")
    trainer = trained(spec, prepared(spec, model))
    assert torch.equal(trainer.reference.sums["forget"], original)
    assert not torch.allclose(sums(model), original, rtol=1e-3)
    with adapters.adapter_off(model):
        assert torch.equal(sums(model), original)
    assert trains(model) == {n for n, _ in model.named_parameters() if ".lora_" in n}


def test_an_adapter_changes_nothing_until_it_is_trained_and_is_a_function_of_the_seed() -> None:
    model = tiny.llama()
    before = logits(model)
    prepared(tiny.spec(adapter="lora"), model)
    assert packs(model)
    assert torch.equal(logits(model), before)
    torch.manual_seed(3)
    again = prepared(tiny.spec(adapter="lora"), tiny.llama())
    other = prepared(tiny.spec(adapter="lora", seed=1), tiny.llama())
    first = {name: p for name, p in model.named_parameters() if ".lora_A." in name}
    assert len(first) == 2 * 7
    assert all(torch.equal(p, dict(again.named_parameters())[name]) for name, p in first.items())
    assert not any(torch.equal(p, dict(other.named_parameters())[name]) for name, p in first.items())


TRAINABLE: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "everything": ({}, lambda _: True),
    "a layer": ({"layers": [1]}, lambda n: ".layers.1." in n),
    "from the end": ({"layers": [-1, 0]}, lambda n: ".layers.2." in n or ".layers.0." in n),
    "adapters": ({"adapter": LORA}, lambda n: ".lora_" in n),
    "adapters by name": ({"adapter": LORA | {"targets": ["q_proj", "mlp.up_proj"]}}, lambda n: "lora_" in n),
    "adapters in a layer": ({"adapter": LORA, "layers": [2]}, lambda n: ".lora_" in n and ".layers.2." in n),
}


@pytest.mark.parametrize("case", TRAINABLE)
def test_only_what_was_asked_for_moves(case: str) -> None:
    training, wanted = TRAINABLE[case]
    spec = tiny.spec("GradDiff", {"name": "adamw", "lr": 0.01}, **training)
    model = prepared(spec)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(spec, model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trains(model) == {name for name in before if wanted(name)}


def test_adapters_go_beside_every_linear_module_of_the_layers_or_beside_those_named() -> None:
    def modules(**adapter: Any) -> set[str]:
        model = prepared(tiny.spec(adapter=LORA | adapter))
        return {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in trains(model)}

    assert modules() == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert modules(targets=["q_proj", "mlp.up_proj"]) == {"q_proj", "up_proj"}


@pytest.mark.parametrize("adapter", [None, LORA], ids=["weights", "adapters"])
def test_rmu_trains_the_down_projections_of_its_layer_and_of_the_two_below(adapter: Any) -> None:
    spec = tiny.spec({"name": "rmu", "layer": 3, "retain": "hidden"}, adapter=adapter)
    names = trains(prepared(spec, tiny.llama(layers=5)))
    part = "weight" if adapter is None else "lora_A.default.weight"
    down = {name for name in names if name.endswith(part)}
    assert down == {f"model.layers.{i}.mlp.down_proj.{part}" for i in (1, 2, 3)}
    assert len(names) == (3 if adapter is None else 6)


@pytest.mark.parametrize("adapter", [None, LORA], ids=["weights", "adapters"])
def test_recomputed_layers_give_the_same_gradients_and_keep_less(adapter: Any) -> None:
    def run(again: bool) -> tuple[dict[str, Tensor], int, int]:
        spec = tiny.spec({"name": "npo", "retain": "kl"}, adapter=adapter, gradient_checkpointing=again)
        model = prepared(spec)
        tiny.nudge(model)
        trainer = tiny.trainer(spec, model, SETS)
        tiny.nudge(model, seed=5)
        kept, forwards = [0], [0]

        def count(*_: Any) -> None:
            forwards[0] += 1

        def keep(x: Tensor) -> Tensor:
            kept[0] += x.numel() * x.element_size()
            return x

        model.model.layers[1].self_attn.register_forward_hook(count)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            trainer.gradients(tiny.STOP)
        return tiny.gradients(model), kept[0], forwards[0]

    plain, kept, once = run(False)
    recomputed, kept_less, twice = run(True)
    assert (once, twice) == (1, 2)
    assert kept_less < 0.8 * kept
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-6, atol=1e-7)


def test_dropout_stays_off_where_layers_are_recomputed() -> None:
    config = OPTConfig(
        vocab_size=tiny.VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, dropout=0.5
    )
    model = tiny.shaken(AutoModelForCausalLM.from_config(config), 0)
    still = logits(model)
    prepared(tiny.spec(gradient_checkpointing=True, adapter="lora"), model)
    ours = head(model, hidden_states(model, collate(model, FORGET)))
    assert ours.requires_grad
    torch.testing.assert_close(ours.detach(), still, rtol=1e-5, atol=1e-6)


def test_second_derivatives_go_through_recomputed_layers() -> None:
    def curvature(again: bool) -> list[Tensor]:
        spec = tiny.spec(
            {"name": "npo", "retain": "nll"}, {"name": "sophia_h", "lr": 0.01}, gradient_checkpointing=again
        )
        return [p.detach() for p in trained(spec, prepared(spec), 1).parameters]

    for ours, plain in zip(curvature(True), curvature(False), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_merging_is_what_the_adapter_did_for_transposed_modules_too() -> None:
    model = tiny.shaken(
        AutoModelForCausalLM.from_config(GPT2Config(vocab_size=tiny.VOCAB, n_embd=32, n_layer=2, n_head=4)), 0
    )
    spec = tiny.spec("GradDiff", {"name": "adamw", "lr": 0.05}, adapter="lora")
    before = logits(model)
    trained(spec, prepared(spec, model))
    adapted = logits(model)
    assert not torch.allclose(adapted, before, rtol=1e-2)
    adapters.merge(model)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=1e-5)
    assert not adapters.injected(model)


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no such module": (
        {"adapter": {"targets": ["q_proj", "wisdom"]}},
        "training.adapter.targets.1",
        "Allowed: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
    ),
    "the head": ({"adapter": {"targets": ["lm_head"]}}, "training.adapter.targets.0", "Allowed: down_proj"),
    "half a name": ({"adapter": {"targets": ["proj"]}}, "training.adapter.targets.0", "Allowed: down_proj"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_target_that_is_no_linear_module_is_refused_before_a_weight_is_read(
    case: str, random_folder: Path, tmp_path: Path
) -> None:
    training, param, allowed = WRONG[case]
    (tmp_path / "config.json").write_text((random_folder / "config.json").read_text())
    with pytest.raises(SpecError, match=allowed) as caught:
        tuning.check(tiny.spec(**training), tmp_path)
    assert caught.value.problems[0].param == param


def test_an_architecture_unknown_to_transformers_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "seance"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        tuning.check(tiny.spec(adapter="lora"), tmp_path)


def test_a_task_vector_of_adapters_is_gone_back_along() -> None:
    model = tiny.llama()
    spec = tiny.spec({"name": "task_vector", "alpha": 0.3}, {"name": "adamw", "lr": 0.01}, adapter="lora")
    original = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(spec, prepared(spec, model))
    detour = copy.deepcopy(model)
    adapters.merge(detour)
    subtract(Context(spec, model, Path(), Inputs(), {}, tiny.silent, tiny.STOP))
    adapters.merge(model)
    there = dict(detour.named_parameters())
    for name, p in model.named_parameters():
        wanted = original[name] - 0.3 * (there[name] - original[name])
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-5, atol=1e-6)
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, original["model.layers.0.mlp.up_proj.weight"])
