"""Random models of a few thousand weights and random rows of ids, for laws that hold of any model and any text."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from core.events import StopFlag
from core.forward import choose_attention
from core.reference import Reference, observe
from core.spec.job import JobSpec, parse
from core.tokens import Example
from core.train import Trainer

VOCAB = 40
STOP = StopFlag()


def llama(seed: int = 0, vocab: int = VOCAB, hidden: int = 32, layers: int = 2) -> LlamaForCausalLM:
    """A Llama whose weights are large enough for its predictions to differ from token to token."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    return shaken(LlamaForCausalLM(config), seed)


def shaken(model: Any, seed: int, spread: float = 0.2) -> Any:
    """The model, ready to run, with normal noise of this spread in place of what it was initialised with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(1.0 if p.ndim == 1 else 0.0, spread, generator=generator)
    model.eval()
    choose_attention(model)
    return model


def nudge(model: PreTrainedModel, seed: int = 1, spread: float = 0.02) -> None:
    """Move every weight a little, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=spread)


def rows(seed: int, lengths: Sequence[tuple[int, int]], vocab: int = VOCAB) -> tuple[Example, ...]:
    """Examples of these lengths (prompt tokens, answer tokens)."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        Example(tuple(torch.randint(1, vocab, (prompt + answer,), generator=generator).tolist()), prompt, True)
        for prompt, answer in lengths
    )


def spec(method: Any = "ascent", optimizer: Any = "adamw", seed: int = 0, **training: Any) -> JobSpec:
    """A spec whose model and data are given otherwise."""
    data = {name: {"source": "jsonl", "path": name} for name in ("forget", "retain")}
    wanted = {"model": "model", "data": data, "method": method, "optimizer": optimizer, "training": training}
    return parse(wanted | {"seed": seed})


def trainer(wanted: JobSpec, model: PreTrainedModel, sets: Mapping[str, Sequence[Example]], steps: int = 1) -> Trainer:
    """A trainer with its reference filled from the model as it is now."""
    made = Trainer(wanted, model, sets, Reference(), steps)
    needs = {name: made.objective.needs[name] for name in made.names}
    seen = {name: made.feed.rows_ever(name, steps) for name in made.names}
    observe(made.reference, needs, model, sets, seen, made.objective.layer, 4096, STOP)
    return made


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of every gradient by its parameter's name; zeros where there is none."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def silent(event: str, **fields: Any) -> None:
    """Listens to a run and says nothing."""
