"""Greedy texts of many rows at a time are those of each row alone, in every family, however few rows fit at once."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    GenerationConfig,
    Lfm2Config,
    MambaConfig,
    MiniMaxConfig,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
    RwkvConfig,
)

from core.data.encode import EncodedSet
from core.evaluation.generate import generate_answers
from core.evaluation.score import How, answers, score
from core.evaluation.together import Together, together
from core.events import StopFlag
from core.forward import generating, packs
from core.spec.records import Record
from core.tokens import Encoder, Example
from tests import tiny
from tests.core.test_architectures import FAMILIES, SHARED

SMALL: dict[str, Any] = {"vocab_size": tiny.VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
MAMBA: dict[str, Any] = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1}
DELTA: dict[str, Any] = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# Their states are of a whole row. MiniMax's takes padding for text, and RWKV's mixes even rows of one length.
RECURRENT: dict[str, Any] = {
    "mamba": MambaConfig(state_size=8, **SMALL),
    "falcon_h1": FalconH1Config(mamba_d_state=8, mamba_chunk_size=8, **MAMBA, **SHARED),
    "lfm2": Lfm2Config(layer_types=["conv", "full_attention"], **SHARED),
    "qwen3_next": Qwen3NextConfig(
        head_dim=16,
        linear_value_head_dim=8,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
        **DELTA,
        **EXPERTS,
        **SHARED,
    ),
    "minimax": MiniMaxConfig(layer_types=["linear_attention", "full_attention"], block_size=8, **SHARED),
    "rwkv": RwkvConfig(attention_hidden_size=32, **SMALL),
}
SOME = ("llama", "gpt2", "opt", "gpt_neox", "qwen2", "qwen2, windows", "qwen3", "mistral", "phi3", "gemma2", "gemma3")
CONFIGS = {**{name: FAMILIES[name] for name in SOME}, **RECURRENT}
# Of any length, and longer than any window.
PROMPTS = [list(row.ids) for row in tiny.rows(5, [(n, 0) for n in (1, 3, 7, 12, 5, 9, 3, 4)])]
LIMIT = 14


def made(family: str, **changes: Any) -> Any:
    """A random model, loud and lucky enough for its texts not to go in circles at once."""
    config = copy.deepcopy(CONFIGS[family])
    for name, value in changes.items():
        setattr(config, name, value)
    seed = {"gpt2": 1, "gpt_neox": 5, "gemma2": 3}.get(family, 0)
    return tiny.shaken(AutoModelForCausalLM.from_config(config), seed, 0.3)


def numbered(eos: int, specials: Sequence[int] = ()) -> Any:
    """A tokenizer whose tokens are named by their numbers."""
    tokens = Tokenizer(WordLevel({f"t{i}": i for i in range(tiny.VOCAB)}, unk_token="t0"))
    named = [f"t{i}" for i in specials]
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token=f"t{eos}", additional_special_tokens=named)


def text(ids: Sequence[int]) -> str:
    return " ".join(f"t{i}" for i in ids)


def alone(model: Any, prompts: Sequence[Sequence[int]], limit: int = LIMIT) -> list[list[int]]:
    """What transformers' own generation writes after each prompt, ended by nothing."""
    its_own, model.generation_config = model.generation_config, GenerationConfig()
    with generating(model), torch.inference_mode():
        texts = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False)
            texts.append(made[0, len(prompt) :].tolist())
    model.generation_config = its_own
    return texts


def ended(texts: Sequence[list[int]], eos: int) -> list[list[int]]:
    return [ids[: ids.index(eos)] if eos in ids else ids for ids in texts]


def an_end(texts: Sequence[list[int]]) -> int:
    """The token that ends the texts at the most different times."""
    return max(range(tiny.VOCAB), key=lambda eos: len({len(ids) for ids in ended(texts, eos)}))


@contextmanager
def seen(model: Any) -> Iterator[list[tuple[int, int]]]:
    """Rows and tokens of every forward pass."""
    shapes: list[tuple[int, int]] = []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape[:2])))
    yield shapes
    hook.remove()


@pytest.mark.parametrize("family", CONFIGS)
def test_texts_are_transformers_own_row_by_row(family: str) -> None:
    model = made(family)
    texts = alone(model, PROMPTS)
    eos = an_end(texts)
    wanted = [text(ids) for ids in ended(texts, eos)]
    assert len(set(map(len, wanted))) > 2, "texts that end together would leave nothing to see"
    for most in (None, 50):
        assert generate_answers(model, numbered(eos), PROMPTS, LIMIT, tiny.STOP, most_tokens=most) == wanted


@pytest.mark.parametrize("family", ["llama", "mistral", "mamba"])
def test_however_few_rows_fit_and_however_short_the_texts(family: str) -> None:
    model = made(family)
    texts = alone(model, PROMPTS)
    eos = an_end(texts)
    for limit in (1, 2, LIMIT):
        wanted = [text(ids) for ids in ended([ids[:limit] for ids in texts], eos)]
        assert generate_answers(model, numbered(eos), PROMPTS, limit, tiny.STOP) == wanted
        assert generate_answers(model, numbered(eos), PROMPTS[::-1], limit, tiny.STOP, most_tokens=1) == wanted[::-1]


@pytest.mark.parametrize(
    ("family", "able"),
    [
        ("llama", Together()),
        ("gpt2", Together()),
        ("gemma3", Together()),
        ("mamba", Together(drops=False)),
        ("falcon_h1", Together(drops=False)),
        ("minimax", Together(batches=False, drops=False)),
        ("rwkv", Together(batches=False, drops=False)),
    ],
)
def test_what_a_family_is_able_to_is_found_out_once(family: str, able: Together) -> None:
    model = made(family)
    with seen(model) as shapes:
        assert together(model) == able
        passes = len(shapes)
        assert passes > 0
        assert together(model) == able
        assert len(shapes) == passes


def test_rows_that_have_ended_are_not_computed_any_more() -> None:
    model = made("llama")
    texts = alone(model, PROMPTS)
    eos = an_end(texts)
    together(model)
    with seen(model) as shapes:
        generate_answers(model, numbered(eos), PROMPTS, LIMIT, tiny.STOP)
    assert shapes[0] == (len(PROMPTS), max(map(len, PROMPTS)))
    assert all(tokens == 1 for _, tokens in shapes[1:]), "no turn may begin by reading the prompts again"
    rows = [rows for rows, _ in shapes[1:]]
    assert rows == sorted(rows, reverse=True)
    steps = [min(LIMIT, len(ids) + 1) - 1 for ids in ended(texts, eos)]
    assert len(rows) == max(steps)
    assert sum(steps) <= sum(rows) < 0.9 * len(PROMPTS) * len(rows)


def test_where_no_row_can_be_taken_out_there_is_one_turn() -> None:
    model = made("mamba")
    texts = alone(model, PROMPTS)
    eos = an_end(texts)
    together(model)
    with seen(model) as shapes:
        generate_answers(model, numbered(eos), PROMPTS, LIMIT, tiny.STOP)
    longest = max(min(LIMIT, len(ids) + 1) for ids in ended(texts, eos))
    assert shapes == [(len(PROMPTS), max(map(len, PROMPTS)))] + [(len(PROMPTS), 1)] * (longest - 1)


@pytest.mark.parametrize("family", ["minimax", "rwkv"])
def test_where_a_batch_would_change_texts_each_is_written_alone(family: str) -> None:
    model = made(family)
    together(model)
    with seen(model) as shapes:
        generate_answers(model, numbered(0), PROMPTS, 1, tiny.STOP)
    assert sorted(shapes) == sorted((1, len(prompt)) for prompt in PROMPTS)


def test_a_chat_models_own_ends_count_where_they_are_special_tokens() -> None:
    model = made("qwen3")
    texts = alone(model, PROMPTS)
    eos, other, word = sorted(range(tiny.VOCAB), key=lambda token: -sum(token in ids for ids in texts))[:3]
    model.generation_config = GenerationConfig(eos_token_id=[other, word])
    found = generate_answers(model, numbered(eos, [other]), PROMPTS, LIMIT, tiny.STOP)
    both = ended(ended(texts, eos), other)
    assert found == [text(ids) for ids in both]
    assert both != ended(texts, eos)
    assert any(word in ids for ids in both)
    # A default that says nothing, as a configuration without a tokenizer has.
    model.generation_config = GenerationConfig(eos_token_id=other)
    assert generate_answers(model, numbered(eos), PROMPTS, LIMIT, tiny.STOP) == [text(ids) for ids in ended(texts, eos)]


def test_a_stop_is_heeded_at_the_next_token_and_the_model_is_as_it_was() -> None:
    model = made("llama")
    model.generation_config = its_own = GenerationConfig(num_beams=3, repetition_penalty=7.0)
    together(model)
    stop = StopFlag()
    with seen(model) as shapes:
        hook = model.register_forward_hook(lambda *_: stop.set() if len(shapes) == 4 else None)
        generate_answers(model, numbered(3), PROMPTS, LIMIT, stop, most_tokens=60)
        assert len(shapes) == 4
        generate_answers(model, numbered(3), PROMPTS, LIMIT, stop)
        assert len(shapes) == 4
        hook.remove()
    assert packs(model)
    assert model.generation_config is its_own

    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    hook = model.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        generate_answers(model, numbered(3), PROMPTS, LIMIT, tiny.STOP)
    hook.remove()
    assert packs(model)
    assert model.generation_config is its_own


def test_nothing_is_written_past_the_models_positions() -> None:
    model = made("gpt2", n_positions=24)
    (long,) = (row.ids for row in tiny.rows(1, [(23, 1)]))
    prompts = {0: Example(long, 24, False), 1: Example(long, 23, False), 2: Example(long[:9], 8, False)}
    # No token ends a text that none of them holds.
    texts = alone(model, [long[:23], long[:8]], 1) + alone(model, [long[:8]], 16)
    eos = next(token for token in range(tiny.VOCAB) if not any(token in ids for ids in texts))
    found = answers(model, numbered(eos), prompts, How(max_new_tokens=64), tiny.STOP)
    assert found == {0: "", 1: text(texts[0]), 2: text(texts[2])}
    assert answers(model, numbered(eos), {}, How(), tiny.STOP) == {}
    assert generate_answers(model, numbered(eos), [], 5, tiny.STOP) == []
    assert generate_answers(model, numbered(eos), [[3], [4]], 0, tiny.STOP) == ["", ""]


@pytest.mark.parametrize("family", ["llama", "gemma3", "mamba"])
def test_bf16_writes_texts_too(family: str, tokenizer: Any) -> None:
    model = made(family, vocab_size=len(tokenizer))
    before = {name: p.clone() for name, p in model.named_parameters()}
    records = [Record("Where was she born?", "Here."), Record("Who?", "She was a founder of bells, and of a choir.")]
    encoder = Encoder(tokenizer, "plain", 64)
    examples = tuple(e for e in map(encoder.example, records) if e is not None)
    data = EncodedSet(tuple(records), examples, ())
    rows = score(model, encoder, data, How(max_new_tokens=6, precision="bf16"), stop=tiny.STOP)
    assert [row.generated for row in rows] != ["", ""]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
