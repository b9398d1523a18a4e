"""Whole runs with adapters, chosen formats and other bases: what is delivered is what was trained, and was measured."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from core import adapters, tuning
from core.model import load
from core.spec.job import parse
from tests.core.recording import QUICK, Recorder, carry_out, interrupted, weights_digest
from tests.models import Reciter

LORA: dict[str, Any] = {"name": "lora", "rank": 4}


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


def held_in(dtype: torch.dtype, unlearnt: Reciter, folder: Path) -> Reciter:
    model = plain(unlearnt.model).to(dtype)
    model.save_pretrained(folder)
    for file in unlearnt.model.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return Reciter(folder, unlearnt.forget, unlearnt.retain)


@pytest.mark.parametrize("adapter", [None, LORA], ids=["weights", "adapters"])
def test_a_model_keeps_its_format_and_what_is_measured_is_what_is_delivered(
    adapter: Any, unlearnt: Reciter, tmp_path: Path
) -> None:
    coarse = held_in(torch.bfloat16, unlearnt, tmp_path / "given")
    for given, dtype in ((coarse, torch.bfloat16), (unlearnt, torch.float32)):
        out = tmp_path / str(dtype)
        report = carry_out(wanted(given, adapter=adapter), out).report
        assert {t.dtype for t in load_file(out / "model" / "model.safetensors").values()} == {dtype}
        assert report.after != report.before
        delivered = Reciter(out / "model", given.forget, given.retain)
        again = carry_out(wanted(delivered, "origin"), tmp_path / f"{dtype}-again").report
        assert again.before == report.after


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_an_untrained_adapter_beside_weights_held_in_bf16_delivers_the_bits_that_came_in(
    dtype: torch.dtype, unlearnt: Reciter, tmp_path: Path
) -> None:
    given = held_in(dtype, unlearnt, tmp_path / "given")
    spec = parse(wanted(given, adapter=LORA, precision="bf16"))
    model, tokenizer = load(given.model, torch.device("cpu"))
    tuning.hold(tuning.prepare(model, spec), spec)
    assert {p.dtype for p in adapters.plain_parameters(model).values()} == {torch.bfloat16}
    tuning.deliver(model, tokenizer, tmp_path / "model", spec, given.model)
    came, went = (load_file(f / "model.safetensors") for f in (given.model, tmp_path / "model"))
    assert came.keys() == went.keys()
    assert all(torch.equal(went[name], tensor) and went[name].dtype == dtype for name, tensor in came.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_what_is_measured_is_what_came_in_and_what_goes_out_where_bf16_trains_adapters(
    dtype: torch.dtype, unlearnt: Reciter, tmp_path: Path
) -> None:
    given = held_in(dtype, unlearnt, tmp_path / "given")
    report = carry_out(wanted(given, adapter=LORA, precision="bf16"), tmp_path / "out").report
    delivered = Reciter(tmp_path / "out" / "model", given.forget, given.retain)
    for what, scores in ((given, report.before), (delivered, report.after)):
        assert carry_out(wanted(what, "origin"), tmp_path / what.model.parent.name / "again").report.before == scores
    assert report.after != report.before


def test_adapters_apart_are_measured_beside_the_weights_as_given(unlearnt: Reciter, tmp_path: Path) -> None:
    from peft import PeftModel

    spec = wanted(unlearnt, adapter=LORA | {"deliver": "adapter"}, precision="bf16")
    report = carry_out(spec, tmp_path / "out").report
    joined: Any = PeftModel.from_pretrained(plain(unlearnt.model), tmp_path / "out" / "model")
    held_in(torch.float32, unlearnt, tmp_path / "joined")
    joined.merge_and_unload().save_pretrained(tmp_path / "joined")
    delivered = Reciter(tmp_path / "joined", unlearnt.forget, unlearnt.retain)
    again = carry_out(wanted(delivered, "origin"), tmp_path / "again").report.before
    for name, score in report.after.items():
        assert getattr(score, "value", 0) == pytest.approx(getattr(again[name], "value", 0), rel=1e-4)


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


@pytest.mark.parametrize("adapter", [None, LORA], ids=["weights", "adapters"])
def test_in_bf16_too_the_model_begins_at_its_reference(adapter: Any, unlearnt: Reciter, tmp_path: Path) -> None:
    heard = Recorder()
    spec = wanted(unlearnt, {"name": "npo", "retain": "kl"}, adapter=adapter, precision="bf16", steps=1)
    carry_out(spec, tmp_path, heard)
    (step,) = heard.of("step")
    assert step["forget_loss"] == pytest.approx(2 / 0.1 * math.log(2), abs=2e-3)
    assert step["retain_loss"] == pytest.approx(0, abs=1e-6)


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
