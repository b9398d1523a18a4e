"""Loading and saving a model folder in the hub's layout: safetensors only, and never code that comes with it."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from core.errors import ModelError
from core.forward import choose_attention
from core.spec.sources import PromptFormat
from core.tokens import Encoder


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a complete safetensors model. Raises ModelError naming what is wrong."""
    config_file = folder / "config.json"
    # Path.is_file raises for a name that is too long.
    there = os.path.isfile(config_file)  # noqa: PTH113
    if not there and os.path.isfile(folder / "adapter_config.json"):  # noqa: PTH113
        raise ModelError(f"{folder} holds adapters alone; they must be merged into their model first", param="model")
    if not os.path.isdir(folder):  # noqa: PTH112
        raise ModelError(f"There is no folder {folder}", param="model")
    if not there:
        raise ModelError(f"{folder} holds no config.json; a model folder in the hub's layout is needed", param="model")
    try:
        config = json.loads(config_file.read_text())
    except (ValueError, OSError) as error:
        raise ModelError(f"{config_file} is not readable JSON: {error}", param="model") from None
    if not isinstance(config, dict):
        raise ModelError(f"{config_file} holds no JSON object", param="model")
    if "auto_map" in config:
        raise ModelError(f"{folder} asks for code of its own (auto_map), which is never run", param="model")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no *.safetensors; other weight formats are never loaded", param="model")


def load(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, Any]:
    """Model (dropout off) and tokenizer of a local folder. Raises ModelError.

    Dropout stays off in training too: every law that speaks of the reference depends on it. Weights that are trained
    must be fp32; frozen ones, under adapters, may be bf16.
    """
    check_folder(folder)
    try:
        model, tokenizer, lacks = read(AutoModelForCausalLM, folder, dtype)
    except Exception as error:
        # What a library says to a broken file is of any type: its own, a KeyError, Rust's.
        raise ModelError(f"{folder} cannot be loaded: {type(error).__name__}: {error}", param="model") from error
    if lacks is not None:
        raise ModelError(f"{folder} {lacks}", param="model")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: the tokenizer has no end-of-sequence token", param="model")
    model.to(device)
    model.eval()
    choose_attention(model)
    return model, tokenizer


def read(kind: Any, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, str | None]:
    """A model of one of transformers' Auto classes, its tokenizer, and which weights the folder lacks, in words: such a
    model would run all the same, on numbers drawn at random. Raises what transformers does, errors of any type."""
    model, found = kind.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    missing = sorted(found["missing_keys"])
    return model, tokenizer, f"lacks {len(missing)} weights, among them {', '.join(missing[:3])}" if missing else None


def encoder(
    model: PreTrainedModel, tokenizer: Any, prompt_format: PromptFormat, max_length: int, system: str | None = None
) -> Encoder:
    """The model's own encoder: rows are no longer than `max_length`, nor than the model takes."""
    return Encoder(tokenizer, prompt_format, min(max_length, positions(model)), system)


def positions(model: PreTrainedModel) -> int:
    """How many tokens the model can attend to; a very large number where its configuration sets no limit."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def save(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write a complete folder in the hub's layout, tokenizer included."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
