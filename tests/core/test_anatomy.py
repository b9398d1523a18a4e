"""Layers and down projections are found in every family, and a layer's existence before any weight is loaded."""

import subprocess
import sys
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, Gemma3Config, GPTNeoConfig, MixtralConfig

from core.anatomy import decoder_layers, depth_of, down_projections, layer_of
from core.errors import ModelError
from tests import tiny
from tests.core.test_architectures import FAMILIES, WIDE


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_and_down_projections_are_found(family: str) -> None:
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    depth = depth_of(model.config.to_dict())
    assert len(decoder_layers(model)) == depth
    for layer in range(depth):
        ((name, weight),) = down_projections(model, [layer])
        assert dict(model.named_parameters())[name] is weight
        assert layer_of(name) == layer
        # GPT-2 keeps its matrices the other way round, Mixtral those of three experts together.
        assert {tuple(weight.shape)} <= {(32, 48), (128, 32), (3, 32, 48)}
    outside = [name for name, _ in model.named_parameters() if layer_of(name) is None]
    assert any("emb" in name or "wte" in name for name in outside)


def test_the_layers_of_a_model_that_also_sees_are_those_of_its_text() -> None:
    text = {**WIDE, "vocab_size": tiny.VOCAB, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = AutoModelForCausalLM.from_config(config)
    assert "Gemma3DecoderLayer" in type(decoder_layers(model)[0]).__name__
    assert depth_of(config.to_dict()) == 2
    assert layer_of("model.vision_tower.encoder.layers.1.mlp.fc2.weight") is None
    assert layer_of("model.language_model.layers.1.mlp.down_proj.weight") == 1


def test_every_expert_has_a_down_projection() -> None:
    config = MixtralConfig(vocab_size=tiny.VOCAB, num_key_value_heads=2, num_local_experts=3, **WIDE)
    model = AutoModelForCausalLM.from_config(config)
    assert sum(w.numel() for _, w in down_projections(model, [0, 1])) == 2 * 3 * 32 * 48


@pytest.mark.parametrize(
    ("config", "depth"),
    [
        ({"num_hidden_layers": 3}, 3),
        ({"n_layer": 4}, 4),
        (GPTNeoConfig(num_layers=2, attention_types=[[["global"], 2]]).to_dict(), 2),
        ({"text_config": {"num_hidden_layers": 5}, "num_hidden_layers": 7}, 5),
    ],
)
def test_depth_is_read_from_the_configuration(config: dict[str, Any], depth: int) -> None:
    assert depth_of(config) == depth


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": "many"}, {"n_layer": 0}])
def test_a_configuration_without_a_depth_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="num_hidden_layers"):
        depth_of(config)


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_layer_that_does_not_exist_is_refused(layer: int) -> None:
    with pytest.raises(ModelError, match="allowed: 0 to 1"):
        down_projections(tiny.llama(), [layer])


def test_reading_a_depth_costs_no_torch() -> None:
    told = "import sys, core.anatomy; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0
