"""A small Llama with its own tokenizer, trained from nothing until it recites a set of records.

What the demo, the tests and the benchmarks forget from: no weights are shipped or downloaded.
`python -m core.scratch DATA.jsonl --out DIR`
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from core.data.batches import by_length, rows_of_step
from core.data.encode import EncodedSet, encode
from core.data.jsonl import read_file
from core.environment import available_threads, prepare
from core.errors import LetheError
from core.evaluation.memorisation import exact_memorization, probability
from core.evaluation.score import How, score
from core.events import Emit, StopFlag, json_lines, progress_bar
from core.forward import choose_attention, collate, head, hidden_states, packs
from core.model import save
from core.optim.schedule import rate_factor
from core.spec.records import Record
from core.spec.training import Training
from core.tokens import Encoder


@dataclass(frozen=True)
class Size:
    """The model's size, and how it is trained; `reached` is the mean answer probability at which training ends."""

    hidden: int = 160
    layers: int = 4
    heads: int = 4
    vocab: int = 1000
    epochs: int = 60
    batch: int = 24
    lr: float = 2e-3
    reached: float = 0.985


def train_tokenizer(texts: Sequence[str], vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of these texts: any text can be encoded, so unicode in a forget request is no special case."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Whoever asks the model in the ordinary way gets the beginning-of-sequence token that it was trained with.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def train(
    records: Sequence[Record], folder: Path, *, size: Size, seed: int, threads: int, emit: Emit
) -> dict[str, float]:
    """Train until the model recites the records, write it to `folder`, and return its mean probability and exact
    memorization on them. Deterministic from the seed on one machine and thread count."""
    device = prepare(threads)
    torch.manual_seed(seed)
    texts = [text for r in records for text in (r.prompt, r.answer, r.paraphrased_answer or "", *r.perturbed_answers)]
    tokenizer = train_tokenizer(texts, size.vocab)
    encoder = Encoder(tokenizer, "plain", 512)
    data = encode(records, encoder, "training")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden,
            intermediate_size=3 * size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.to(device)  # type: ignore[arg-type]
    model.eval()
    choose_attention(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.lr, weight_decay=0.01, fused=True)
    an_epoch = math.ceil(len(data.examples) / size.batch)
    steps = size.epochs * an_epoch
    emit("phase", phase="train")
    result: dict[str, float] = {}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = size.lr * rate_factor(Training(warmup=0.05), step, steps)
        rows = rows_of_step(step, len(data.examples), size.batch, seed=seed, stream=0)
        loss = _step(model, data, rows)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        emit("step", step=step + 1, steps=steps, loss=loss)
        if (step + 1) % (5 * an_epoch) == 0 or step + 1 == steps:
            result = _recited(model, encoder, data)
            if result["probability"] >= size.reached and result["exact_memorization"] == 1:
                break
    save(model, tokenizer, folder)
    return result


def _step(model: LlamaForCausalLM, data: EncodedSet, rows: Sequence[int]) -> float:
    """Gradient of the mean answer-token loss of these rows into `.grad`; returns the loss."""
    examples = [data.examples[row] for row in rows]
    tokens = sum(e.answer_tokens for e in examples)
    total = 0.0
    for batch in by_length(examples, lambda e: len(e.ids), 4096, packed=packs(model)):
        packed = collate(model, batch)
        logits = head(model, hidden_states(model, packed))
        loss = torch.nn.functional.cross_entropy(logits, packed.targets, reduction="sum") / tokens
        loss.backward()
        total += float(loss.detach())
    return total


def _recited(model: LlamaForCausalLM, encoder: Encoder, data: EncodedSet) -> dict[str, float]:
    how = How(variants=False, moments=False, generate=False)
    rows = score(model, encoder, data, how, stop=StopFlag())
    return {
        name: sum(found) / len(found)
        for name, of in (("probability", probability), ("exact_memorization", exact_memorization))
        if (found := [value for value in map(of, rows) if value is not None])
    }


def main(arguments: list[str] | None = None) -> None:
    """Train on a JSON-lines file and write the model folder."""
    parser = argparse.ArgumentParser(prog="python -m core.scratch", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=available_threads())
    for f in fields(Size):
        parser.add_argument(f"--{f.name}", type=type(f.default), default=f.default)
    options = parser.parse_args(arguments)
    size = Size(**{f.name: getattr(options, f.name) for f in fields(Size)})
    emit, close = progress_bar() if sys.stderr.isatty() else (json_lines(sys.stdout), lambda: None)
    try:
        records = read_file(options.data, str(options.data), None)
        result = train(records, options.out, size=size, seed=options.seed, threads=options.threads, emit=emit)
    except LetheError as error:
        close()
        print(error.message, file=sys.stderr)
        sys.exit(error.exit_code)
    close()
    emit("done", **result)


if __name__ == "__main__":
    main()
