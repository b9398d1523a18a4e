"""What is not a complete safetensors model is refused with a sentence; what is loaded is saved whole."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from core.errors import ModelError
from core.evaluation.generate import generate_answers
from core.forward import generating, packs
from core.model import load, save
from tests import tiny

CPU = torch.device("cpu")


def _without_safetensors(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def _changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def _without_end(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


LAYER = "model.layers.0.mlp.up_proj.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "not readable JSON"),
    "config no object": (lambda f: (f / "config.json").write_text("3"), "holds no JSON object"),
    "unknown type": (lambda f: _config(f, model_type="seance"), "cannot be loaded"),
    "absurd size": (lambda f: _config(f, hidden_size="wide"), "cannot be loaded"),
    "code of its own": (lambda f: _config(f, auto_map={"AutoModel": "evil.py"}), "never run"),
    "pickle only": (_without_safetensors, r"holds no \*\.safetensors"),
    "weights cut short": (lambda f: (f / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}"), "cannot be loaded"),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be loaded"),
    "a weight missing": (lambda f: _changed(f, lambda w: w.pop(LAYER)), f"lacks 1 weights, among them {LAYER}"),
    "a weight not finite": (lambda f: _changed(f, lambda w: w[LAYER].fill_(torch.nan)), "not finite"),
    "no tokenizer": (lambda f: [file.unlink() for file in f.glob("tokenizer*")], "cannot be loaded"),
    "no end of sequence": (_without_end, "no end-of-sequence token"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_refused(damage: str, random_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(random_folder, tmp_path / "model"))
    spoil, reason = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(ModelError, match=reason):
        load(folder, CPU)


def test_what_is_saved_loads_again_bit_for_bit(random_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load(random_folder, CPU)
    assert not model.training
    save(model, tokenizer, tmp_path)
    again, tokenizer_again = load(tmp_path, CPU)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert tokenizer_again("Où est Zoë?") == tokenizer("Où est Zoë?")


def test_a_saved_folder_is_plain_transformers(random_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load(random_folder, CPU)
    assert packs(model)
    save(model, tokenizer, tmp_path)
    assert packs(model)
    assert not [file.name for file in tmp_path.glob("*.json") if "lethe" in file.read_text()]
    ids = torch.tensor([tokenizer("Who is it?")["input_ids"]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad(), generating(model):
        assert torch.equal(plain(input_ids=ids).logits, model(input_ids=ids).logits)


def test_attention_is_ours_again_after_generating_even_where_that_failed() -> None:
    model = tiny.llama()
    with contextlib.suppress(KeyError), generating(model):
        assert not packs(model)
        raise KeyError
    assert packs(model)


def test_a_models_own_generation_settings_neither_change_the_answers_nor_get_lost(
    random_folder: Path, tmp_path: Path
) -> None:
    model, tokenizer = load(random_folder, CPU)
    prompts = [tokenizer("Who is it?")["input_ids"], tokenizer("Where?")["input_ids"]]
    plain = generate_answers(model, tokenizer, prompts, 12, tiny.STOP)
    model.generation_config = GenerationConfig(num_beams=3, repetition_penalty=5.0, min_new_tokens=12)
    assert generate_answers(model, tokenizer, prompts, 12, tiny.STOP) == plain
    save(model, tokenizer, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["repetition_penalty"] == 5.0
