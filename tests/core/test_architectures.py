"""The answer-only path is each family's own: loss and gradients equal those of transformers' `labels=`."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from core.anatomy import decoder_layers
from core.data.encode import EncodedSet
from core.evaluation.score import How, score
from core.forward import choose_attention, collate, generating, packs, states
from core.model import positions
from core.spec.records import Record
from core.tokens import Encoder, Example
from tests import tiny

SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE: dict[str, Any] = {**SIZE, "intermediate_size": 48, "max_position_embeddings": 64}
# Two heads share their keys and values, and there are more numbers in the heads than in a hidden state.
SHARED: dict[str, Any] = {**WIDE, "num_key_value_heads": 2, "vocab_size": tiny.VOCAB}
BROAD: dict[str, Any] = {**SHARED, "head_dim": 16}
IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GEMMA: dict[str, Any] = {**BROAD, "query_pre_attn_scalar": 12, "sliding_window": 4, "final_logit_softcapping": 2.0}
EVERY_OTHER = ["sliding_attention", "full_attention"]
ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 900.0},
}
FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig(**SHARED),
    "llama, tied": LlamaConfig(vocab_size=tiny.VOCAB, tie_word_embeddings=True, **WIDE),
    "gpt2": GPT2Config(vocab_size=tiny.VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, **IDS),
    "opt": OPTConfig(vocab_size=tiny.VOCAB, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=16, **SIZE),
    "opt, norm last": OPTConfig(
        vocab_size=tiny.VOCAB, ffn_dim=48, max_position_embeddings=64, do_layer_norm_before=False, **SIZE
    ),
    "gpt_neox": GPTNeoXConfig(vocab_size=tiny.VOCAB, use_parallel_residual=False, **WIDE),
    "pythia": GPTNeoXConfig(
        vocab_size=tiny.VOCAB,
        use_parallel_residual=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        **WIDE,
    ),
    "qwen2": Qwen2Config(**SHARED),
    "qwen2, windows": Qwen2Config(use_sliding_window=True, sliding_window=4, max_window_layers=1, **SHARED),
    "qwen3": Qwen3Config(tie_word_embeddings=True, **BROAD),
    "mistral": MistralConfig(sliding_window=5, **BROAD),
    "phi3": Phi3Config(sliding_window=6, **IDS, **SHARED),
    "gemma2": Gemma2Config(attn_logit_softcapping=0.5, layer_types=EVERY_OTHER, **GEMMA),
    "gemma3": Gemma3TextConfig(layer_types=EVERY_OTHER, rope_parameters=ROPES, **GEMMA),
    "cohere": CohereConfig(logit_scale=0.25, **IDS, **SHARED),
    "granite": GraniteConfig(logits_scaling=3.0, attention_multiplier=0.3, residual_multiplier=0.5, **SHARED),
    "mixtral": MixtralConfig(num_local_experts=3, sliding_window=4, **SHARED),
}
# Longer than any window, and two of one length.
ROWS = tiny.rows(0, [(3, 9), (14, 2), (6, 17), (1, 5), (4, 8)])


def made(family: str) -> Any:
    """A random model of the family, loud enough for caps to matter."""
    return tiny.shaken(AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family])), 0, 0.15)


def padded(rows: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and mask as transformers takes them."""
    width = max(len(row.ids) for row in rows)
    ids, labels, mask = torch.zeros(3, len(rows), width, dtype=torch.long).unbind()
    labels.fill_(-100)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
        labels[i, row.start : len(row.ids)] = torch.tensor(row.ids[row.start :])
    return ids, labels, mask


def own_loss(model: Any) -> Tensor:
    """The loss of transformers' own forward pass with its own attention."""
    ids, labels, mask = padded(ROWS)
    with generating(model):
        loss: Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    return loss


def assert_own_loss_and_gradients(model: Any) -> None:
    model.zero_grad()
    loss = own_loss(model)
    loss.backward()
    wanted = tiny.gradients(model)
    trainer = tiny.trainer(tiny.spec("refusal", batch_size=len(ROWS)), model, {"forget": ROWS})
    torch.testing.assert_close(trainer.gradients(tiny.STOP)["forget"], loss.detach(), rtol=1e-5, atol=0)
    # Some gradients are zero but for rounding (a bias on attention's keys), so the scale is that of all.
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in tiny.gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("form", ["packed", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_transformers_own(family: str, form: str) -> None:
    model = made(family)
    assert packs(model)
    with nullcontext() if form == "packed" else generating(model):
        assert packs(model) == (form == "packed")
        assert_own_loss_and_gradients(model)
    assert packs(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_inner_layers_states_are_transformers_own(family: str) -> None:
    model = made(family)
    batch = collate(model, ROWS)
    ids, _, mask = padded(ROWS)
    with torch.no_grad(), generating(model):
        wanted = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
    at = [wanted[i, row.start - 1 : len(row.ids) - 1] for i, row in enumerate(ROWS)]
    ran: list[int] = []
    hooks = [decoder_layers(model)[i].register_forward_hook(lambda *_, i=i: ran.append(i)) for i in range(2)]
    with torch.no_grad():
        both, inner, top = states(model, batch, layer=0), states(model, batch, layer=0, last=False), None
        assert ran == [0, 1, 0]
        top = states(model, batch, layer=1, last=False)
    for hook in hooks:
        hook.remove()
    assert both.last is not None
    assert inner.last is None
    assert top.last is None
    assert top.layer is not None
    assert inner.layer is not None
    torch.testing.assert_close(both.layer, inner.layer, rtol=0, atol=0)
    torch.testing.assert_close(inner.layer, torch.cat(at), rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert top.layer.shape == inner.layer.shape


def test_an_inner_layers_gradient_survives_checkpointed_layers() -> None:
    model = made("llama")
    batch = collate(model, ROWS)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        layer = states(model, batch, layer=0, last=False).layer
        assert layer is not None
        layer.square().mean().backward()
        return tiny.gradients(model)

    wanted = gradients()
    model.gradient_checkpointing_enable()
    model.train()
    ran: list[int] = []
    hook = model.model.layers[0].self_attn.register_forward_hook(lambda *_: ran.append(0))
    found = gradients()
    hook.remove()
    assert len(ran) == 2
    assert any(gradient.any() for gradient in found.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "field"),
    [
        ("gemma2", "final_logit_softcapping"),
        ("gemma2", "attn_logit_softcapping"),
        ("gemma2", "sliding_window"),
        ("gemma3", "final_logit_softcapping"),
        ("gemma3", "sliding_window"),
        ("mistral", "sliding_window"),
        ("phi3", "sliding_window"),
        ("qwen2, windows", "sliding_window"),
    ],
)
def test_these_models_and_rows_do_show_a_cap_or_a_window(family: str, field: str) -> None:
    model = made(family)
    changed = copy.deepcopy(FAMILIES[family])
    setattr(changed, field, 64 if field == "sliding_window" else 1e6)
    without = AutoModelForCausalLM.from_config(changed)
    without.load_state_dict(model.state_dict())
    choose_attention(without.eval())
    with torch.no_grad():
        assert abs(float(own_loss(without) / own_loss(model)) - 1) > 1e-4


def test_generation_ends_where_learned_positions_end(tokenizer: Any) -> None:
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=24)
    model = tiny.shaken(AutoModelForCausalLM.from_config(config), 0)
    encoder = Encoder(tokenizer, "plain", positions(model))
    records = [Record("Where was she born, and when, and of whom?", "Here."), Record("Who?", "She.")]
    examples = tuple(e for e in map(encoder.example, records) if e is not None)
    (long, short) = score(
        model,
        encoder,
        EncodedSet(tuple(records), examples, ()),
        How(batch_tokens=1, max_new_tokens=64),
        stop=tiny.STOP,
    )
    assert long.rouge_l is not None
    assert short.rouge_l is not None
