"""How a model's attention is chosen: packed where that is right, else padded, and refused where neither is."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaForCausalLM, MambaConfig, Qwen2MoeConfig

from core.errors import ModelError
from core.forward import choose_attention, collate, generating, head, hidden_states, packs
from core.model import load
from tests import tiny
from tests.core.test_architectures import (
    FAMILIES,
    GEMMA,
    ROWS,
    SHARED,
    assert_own_loss_and_gradients,
    made,
    padded,
)


class Unknown(LlamaForCausalLM):
    """A model that does something to its logits which no field of its configuration tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        made = super().forward(*args, **kwargs)
        made.logits = made.logits - made.logits.mean(-1, keepdim=True)
        return made


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_refused() -> None:
    with pytest.raises(ModelError, match="changes its logits in a way that is not known here"):
        choose_attention(Unknown(copy.deepcopy(FAMILIES["llama"])).eval())


def test_a_cap_is_seen_in_a_model_whose_logits_never_come_near_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Freshly initialised, with logits far below the cap; without our knowledge of it, the difference must show.
    monkeypatch.setattr("core.forward.finish_logits", lambda _config, logits: logits.float())
    config = Gemma2Config(**(GEMMA | {"final_logit_softcapping": 30.0}))
    with pytest.raises(ModelError, match="'gemma2' changes its logits"):
        choose_attention(AutoModelForCausalLM.from_config(config).eval())


def test_a_model_whose_rows_see_even_a_little_of_each_other_is_not_packed() -> None:
    def seep(_module: Any, _inputs: Any, embedded: Tensor) -> Tensor:
        return embedded + 3e-5 * torch.nn.functional.pad(embedded, (0, 0, 1, 0))[:, :-1]

    model = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES["llama"])).eval()
    model.get_input_embeddings().register_forward_hook(seep)
    choose_attention(model)
    assert not packs(model)


def test_a_model_that_cannot_run_is_refused() -> None:
    config = Qwen2MoeConfig(num_experts=2, num_experts_per_tok=4, moe_intermediate_size=16, **SHARED)
    with pytest.raises(ModelError, match="'qwen2_moe' does not run"):
        choose_attention(AutoModelForCausalLM.from_config(config).eval())


# Its attention is told of no window: only the mask, which packed rows do without, knows it. And one without attention.
UNPACKED: dict[str, Any] = {
    "qwen2_moe": Qwen2MoeConfig(
        num_experts=3,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        use_sliding_window=True,
        sliding_window=32,
        max_window_layers=2,
        **SHARED,
    ),
    "mamba": MambaConfig(vocab_size=tiny.VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4),
}


@pytest.mark.parametrize("family", UNPACKED)
def test_a_family_that_cannot_be_packed_is_padded_and_ignores_the_padding(family: str) -> None:
    model = tiny.shaken(AutoModelForCausalLM.from_config(UNPACKED[family]), 0, 0.15)
    assert not packs(model)
    assert getattr(model.config, "sliding_window", 32) == 32
    with torch.no_grad():
        together = hidden_states(model, collate(model, ROWS))
        alone = torch.cat([hidden_states(model, collate(model, [row])) for row in ROWS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert_own_loss_and_gradients(model)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "gemma2", "gemma3"])
def test_weights_in_bf16_are_packed_too(family: str) -> None:
    model = made(family).to(torch.bfloat16)
    choose_attention(model)
    assert packs(model)
    ids, labels, mask = padded(ROWS)
    with torch.no_grad(), generating(model):
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
    with torch.no_grad():
        ours = head(model, hidden_states(model, collate(model, ROWS)))
    wanted = logits[:, :-1][labels[:, 1:] >= 0]
    assert float((ours - wanted).norm() / wanted.norm()) < 2e-2


def test_a_loaded_folder_may_be_held_in_bf16(random_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(random_folder, tmp_path / "model"))
    model, _ = load(folder, torch.device("cpu"), torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert packs(model)
