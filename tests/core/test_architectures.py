"""The answer-only path is each family's own: loss and gradients equal those of transformers' `labels=`."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Qwen2Config,
)

from core.data.encode import EncodedSet
from core.errors import ModelError
from core.evaluation.score import score
from core.model import load, positions
from core.spec.records import Record
from core.tokens import Encoder
from tests import tiny

SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE: dict[str, Any] = {**SIZE, "intermediate_size": 48, "max_position_embeddings": 64}
FAMILIES: dict[str, Any] = {
    "llama": LlamaConfig(vocab_size=tiny.VOCAB, num_key_value_heads=2, **WIDE),
    "llama, tied": LlamaConfig(vocab_size=tiny.VOCAB, tie_word_embeddings=True, **WIDE),
    "gpt2": GPT2Config(vocab_size=tiny.VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "opt": OPTConfig(vocab_size=tiny.VOCAB, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=16, **SIZE),
    "gpt_neox": GPTNeoXConfig(vocab_size=tiny.VOCAB, **WIDE),
    "qwen2": Qwen2Config(vocab_size=tiny.VOCAB, num_key_value_heads=2, **WIDE),
}
ROWS = tiny.rows(0, [(3, 9), (14, 2), (6, 17), (1, 5)])


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_transformers_own(family: str) -> None:
    model = tiny.shaken(AutoModelForCausalLM.from_config(FAMILIES[family]), 0, 0.1)
    width = max(len(row.ids) for row in ROWS)
    ids, labels, mask = torch.zeros(3, len(ROWS), width, dtype=torch.long).unbind()
    labels.fill_(-100)
    for i, row in enumerate(ROWS):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
        labels[i, row.start : len(row.ids)] = torch.tensor(row.ids[row.start :])
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    wanted = tiny.gradients(model)

    trainer = tiny.trainer(tiny.spec("refusal", batch_size=len(ROWS)), model, {"forget": ROWS})
    torch.testing.assert_close(trainer.gradients(tiny.STOP)["forget"], loss.detach(), rtol=1e-5, atol=0)
    # Some gradients are zero but for rounding (a bias on attention's keys), so the scale is that of all.
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in tiny.gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(head_dim=8, num_key_value_heads=2, final_logit_softcapping=30.0, vocab_size=600, **WIDE),
        CohereConfig(num_key_value_heads=2, logit_scale=0.0625, vocab_size=600, **WIDE),
    ],
    ids=["capped", "scaled"],
)
def test_a_family_that_changes_its_logits_after_the_head_is_refused(
    config: Any, random_folder: Path, tmp_path: Path
) -> None:
    # Freshly initialised, so that no logit comes near the cap.
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for file in random_folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ModelError, match=f"'{config.model_type}' changes its logits after the head"):
        load(tmp_path, torch.device("cpu"))


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
        batch_tokens=1,
        max_new_tokens=64,
        stop=tiny.STOP,
    )
    assert long.rouge_l is not None
    assert short.rouge_l is not None
