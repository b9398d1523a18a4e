"""What the step benchmarks run on: random-init Llamas of fixed sizes, and rows of ids of TOFU's lengths.

Rows come from a local TOFU folder, or else from the people shipped in examples/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from core.data.batches import rows_of_step
from core.data.encode import encode
from core.data.jsonl import read_file
from core.scratch import train_tokenizer
from core.spec.records import Record
from core.tokens import Encoder, Example

ROOT = Path(__file__).resolve().parents[1]
SETS = ("forget", "retain")
Sets = Mapping[str, Sequence[Example]]


@dataclass(frozen=True)
class Size:
    """A Llama's shape; the tokenizer's vocabulary may be smaller than the model's."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocab: int
    tied: bool


SIZES = {
    "25m": Size(hidden=512, intermediate=1024, layers=8, heads=8, vocab=8192, tied=True),
    "1.3b": Size(hidden=2048, intermediate=5504, layers=24, heads=16, vocab=32000, tied=False),
}


def llama(size: Size, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A random-init model, the same for the same seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=512,
        tie_word_embeddings=size.tied,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    model.to(device=device, dtype=dtype)  # type: ignore[call-arg]
    model.eval()
    return model


def read_sets(tofu: Path | None, vocab: int = 8192) -> dict[str, tuple[Example, ...]]:
    """Forget and retain rows as ids of a byte-pair tokenizer trained on these rows.

    `tofu`: a folder with forget01.json and retain99.json; None: the shipped people, the first tenth to be forgotten.
    """
    if tofu is None:
        people = read_file(ROOT / "examples" / "people.jsonl", "people", None)
        cut = len(people) // 10
        records: dict[str, list[Record]] = {"forget": people[:cut], "retain": people[cut:]}
    else:
        files = {"forget": "forget01", "retain": "retain99"}
        records = {name: read_file(tofu / f"{file}.json", file, None) for name, file in files.items()}
    tokenizer = train_tokenizer(
        [text for part in records.values() for r in part for text in (r.prompt, r.answer)], vocab
    )
    encoder = Encoder(tokenizer, "plain", 512)
    return {name: encode(part, encoder, name).examples for name, part in records.items()}


def step_rows(sets: Sets, step: int, batch: int, seed: int = 0) -> dict[str, list[Example]]:
    """The rows of an optimizer step, as the trainer draws them."""
    return {
        name: [sets[name][row] for row in rows_of_step(step, len(sets[name]), batch, seed=seed, stream=stream)]
        for stream, name in enumerate(SETS)
    }
