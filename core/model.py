"""Loading, saving, and the answer-only forward pass: hidden states where answer tokens are predicted, then the head."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from core.errors import ModelError
from core.tokens import Padded


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a complete safetensors model. Raises ModelError naming what is wrong."""
    config_file = folder / "config.json"
    if not config_file.is_file():
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


def load(folder: Path, device: torch.device) -> tuple[PreTrainedModel, Any]:
    """Model (fp32, dropout off) and tokenizer of a local folder. Raises ModelError.

    Dropout stays off in training too: every law that speaks of the reference depends on it.
    """
    check_folder(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # What a library says to a broken file is of any type: its own, a KeyError, Rust's.
        raise ModelError(f"{folder} cannot be loaded: {type(error).__name__}: {error}", param="model") from error
    model, found = loaded
    if found["missing_keys"]:
        some = ", ".join(sorted(found["missing_keys"])[:3])
        raise ModelError(f"{folder} lacks {len(found['missing_keys'])} weights, among them {some}", param="model")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: the tokenizer has no end-of-sequence token", param="model")
    model.to(device)
    model.eval()
    _check_head(model)
    return model, tokenizer


def positions(model: PreTrainedModel) -> int:
    """How many tokens the model can attend to; a very large number where its configuration sets no limit."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def hidden_states(model: PreTrainedModel, batch: Padded) -> Tensor:
    """Last hidden states at the positions that predict answer tokens: (tokens, hidden)."""
    states: Tensor = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
    return states[batch.at_row, batch.at_time]


def head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits in fp32 from hidden states: (tokens, vocab)."""
    logits: Tensor = model.get_output_embeddings()(hidden).float()
    return logits


def _check_head(model: PreTrainedModel) -> None:
    """Our two steps must give the model's own logits; a family that scales or caps them would be trained wrongly.

    A cap shows on large logits only, which not every model has for the probe: its head is made loud.
    """
    probe = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size
    heard: list[Tensor] = []

    def loud(_module: torch.nn.Module, _inputs: Any, logits: Tensor) -> Tensor:
        heard.extend((logits, logits * (100 / logits.abs().max().clamp_min(1e-30))))
        return heard[-1]

    hook = model.get_output_embeddings().register_forward_hook(loud)
    with torch.inference_mode():
        own = model(input_ids=probe, use_cache=False).logits
        hook.remove()
        states = model.base_model(input_ids=probe, use_cache=False).last_hidden_state
        ours = head(model, states)
    if not torch.isfinite(ours).all():
        raise ModelError("the model's logits are not finite: its weights are damaged", param="model")
    quiet, amplified = heard
    if not (torch.allclose(ours, quiet, rtol=1e-4, atol=1e-4) and torch.allclose(own, amplified, rtol=1e-4)):
        raise ModelError(
            f"model type '{model.config.model_type}' changes its logits after the head, which is not supported yet",
            param="model",
        )


def save(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write a complete folder in the hub's layout, tokenizer included."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
