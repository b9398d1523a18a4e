"""What trains is what was asked for and nothing else, and what is delivered is what was measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, PreTrainedModel

from core import adapters, tuning
from core.errors import ModelError, SpecError
from core.forward import collate, head, hidden_states, packs
from core.reference import Reference, add_sums
from core.spec.job import JobSpec
from tests import tiny
from tests.core.recording import QUICK, carry_out, interrupted, weights_digest
from tests.models import Reciter

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
    adapters.merge(model, torch.float32)
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


def wanted(unlearnt: Reciter, method: Any = "NPO", lr: float = 5e-3, **training: Any) -> dict[str, Any]:
    training = {"steps": 6, "batch_size": 3, **training}
    return unlearnt.spec(method=method, optimizer={"name": "adamw", "lr": lr}, training=training, evaluation=QUICK)


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ask(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits  # type: ignore[no-any-return]


def test_merged_and_apart_are_the_same_model(unlearnt: Reciter, tmp_path: Path) -> None:
    from peft import PeftModel

    reports = {}
    for kind in ("merged", "adapter"):
        reports[kind] = carry_out(wanted(unlearnt, adapter=LORA | {"deliver": kind}), tmp_path / kind).report
    merged = ask(plain(tmp_path / "merged" / "model"))
    apart = tmp_path / "adapter" / "model"
    assert {"adapter_config.json", "adapter_model.safetensors"} < {file.name for file in apart.iterdir()}
    assert not list(apart.glob("model*.safetensors"))
    original = plain(unlearnt.model)
    assert not torch.allclose(merged, ask(original), rtol=1e-2)
    torch.testing.assert_close(merged, ask(PeftModel.from_pretrained(original, apart)), rtol=1e-4, atol=1e-5)
    config = json.loads((apart / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == unlearnt.model.name
    assert str(unlearnt.model) not in (apart / "adapter_config.json").read_text()
    for name, value in reports["merged"].after.items():
        assert getattr(value, "value", 0) == pytest.approx(
            getattr(reports["adapter"].after[name], "value", 0), rel=1e-3
        )


def in_bf16(unlearnt: Reciter, folder: Path) -> Reciter:
    model = plain(unlearnt.model).to(torch.bfloat16)
    model.save_pretrained(folder)
    for file in unlearnt.model.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return Reciter(folder, unlearnt.forget, unlearnt.retain)


@pytest.mark.parametrize("adapter", [None, LORA], ids=["weights", "adapters"])
def test_a_model_keeps_its_format_and_what_is_measured_is_what_is_delivered(
    adapter: Any, unlearnt: Reciter, tmp_path: Path
) -> None:
    coarse = in_bf16(unlearnt, tmp_path / "given")
    for given, dtype in ((coarse, torch.bfloat16), (unlearnt, torch.float32)):
        out = tmp_path / str(dtype)
        report = carry_out(wanted(given, adapter=adapter), out).report
        assert {t.dtype for t in load_file(out / "model" / "model.safetensors").values()} == {dtype}
        assert report.after != report.before
        delivered = Reciter(out / "model", given.forget, given.retain)
        again = carry_out(wanted(delivered, "origin"), tmp_path / f"{dtype}-again").report
        assert again.before == report.after


def test_bf16_goes_where_fp32_goes_and_leaves_frozen_weights_as_they_were(unlearnt: Reciter, tmp_path: Path) -> None:
    method = {"name": "npo", "retain": "nll"}
    losses = {}
    for precision in ("fp32", "bf16"):
        spec = wanted(unlearnt, method, adapter=LORA, precision=precision)
        losses[precision] = [p["loss"] for p in carry_out(spec, tmp_path / precision).report.training.curve]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]
    given, made = (load_file(f / "model.safetensors") for f in (unlearnt.model, tmp_path / "bf16" / "model"))
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(made[name], given[name])
    exact = load_file(tmp_path / "fp32" / "model" / "model.safetensors")
    for name, weight in exact.items():
        # Rounded weights would be off by as much as training moved them.
        assert float((made[name] - weight).norm()) <= 0.3 * float((weight - given[name]).norm())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_resume_bit_for_bit_and_are_all_that_a_checkpoint_holds(
    precision: str, unlearnt: Reciter, tmp_path: Path
) -> None:
    spec = wanted(unlearnt, {"name": "npo", "retain": "kl"}, adapter=LORA, precision=precision)
    carry_out(spec, tmp_path / "whole")
    interrupted(spec, tmp_path / "parts", 2)
    kept = load_file(tmp_path / "parts" / "checkpoints" / "step-00000002" / "weights.safetensors")
    assert all(".lora_" in name for name in kept)
    carry_out(spec, tmp_path / "parts")
    assert weights_digest(tmp_path / "parts") == weights_digest(tmp_path / "whole")


def test_a_task_vector_of_adapters_is_gone_back_along(unlearnt: Reciter, tmp_path: Path) -> None:
    weights = {}
    for alpha in (0.0, 0.5):
        carry_out(wanted(unlearnt, {"name": "task_vector", "alpha": alpha}, adapter=LORA), tmp_path / str(alpha))
        weights[alpha] = load_file(tmp_path / str(alpha) / "model" / "model.safetensors")
    carry_out(
        wanted(unlearnt, {"name": "task_vector", "alpha": 0.0}, adapter=LORA | {"deliver": "adapter"}),
        tmp_path / "alone",
    )
    given = load_file(unlearnt.model / "model.safetensors")
    assert all(torch.equal(weights[0.0][name], given[name]) for name in given)
    assert not all(torch.equal(weights[0.5][name], given[name]) for name in given)


def test_retraining_with_adapters_begins_at_the_base_even_where_it_resumes(unlearnt: Reciter, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in unlearnt.model.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    moved = {name: t + 0.05 for name, t in load_file(base / "model.safetensors").items()}
    save_file(moved, base / "model.safetensors", {"format": "pt"})
    spec = wanted(unlearnt, {"name": "retrain", "base": str(base)}, adapter=LORA, precision="bf16")
    interrupted(spec, tmp_path / "out", 3)
    carry_out(spec, tmp_path / "out")
    made = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert torch.equal(made["model.embed_tokens.weight"], moved["model.embed_tokens.weight"])
    carry_out(spec | {"model": str(base), "method": "FT"}, tmp_path / "again")
    assert weights_digest(tmp_path / "out") == weights_digest(tmp_path / "again")
