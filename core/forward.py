"""The answer-only forward pass: hidden states where answer tokens are predicted, then the head on those alone.

It gives the logits of the model's own forward pass; `choose_attention` sees to that when a model is loaded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core import packing
from core.anatomy import decoder_layers
from core.errors import ModelError
from core.tokens import Batch, Example, pack, pad


def packs(model: PreTrainedModel) -> bool:
    """Whether this model's attention takes rows packed into one line."""
    return bool(model.config._attn_implementation == packing.NAME)


def collate(model: PreTrainedModel, examples: Sequence[Example], *, share: bool = False) -> Batch:
    """One batch of the examples in the form that this model takes; `share`: common beginnings once, where it packs."""
    return pack(examples, model.device, share=share) if packs(model) else pad(examples, model.device)


@contextmanager
def generating(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model attends in transformers' own way, with masks and caches."""
    packed = packs(model)
    if packed:
        model.set_attn_implementation(_own_attention(model))
    try:
        yield
    finally:
        if packed:
            model.set_attn_implementation(packing.NAME)


def _own_attention(model: PreTrainedModel) -> str:
    # Older transformers let SDPA stand in for capped attention, and leave the cap out.
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    return "sdpa" if model._supports_sdpa and not capped else "eager"


class _Enough(Exception):
    """Raised in a forward pass when the layer that was asked for has been computed."""


@dataclass(frozen=True)
class States:
    """Hidden states at the positions that predict answer tokens: the last ones, and those of one decoder layer."""

    last: Tensor | None  # (tokens, hidden)
    layer: Tensor | None  # (tokens, hidden)


def states(model: PreTrainedModel, batch: Batch, *, layer: int | None = None, last: bool = True) -> States:
    """One forward pass without the head. Where the last states are not asked for, no layer above `layer` is run."""
    found: list[Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        if not last:
            raise _Enough

    hook = None if layer is None else decoder_layers(model)[layer].register_forward_hook(keep)
    how = {} if batch.layout is None else {"position_ids": batch.positions, "packed": batch.layout}
    final = None
    try:
        final = model.base_model(input_ids=batch.ids, use_cache=False, **how).last_hidden_state
    except _Enough:
        pass
    finally:
        if hook is not None:
            hook.remove()
    return States(None if final is None else _at_answers(final, batch), _at_answers(found[0], batch) if found else None)


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Last hidden states at the positions that predict answer tokens: (tokens, hidden)."""
    last = states(model, batch).last
    assert last is not None
    return last


def _at_answers(line: Tensor, batch: Batch) -> Tensor:
    return line.flatten(0, 1).index_select(0, batch.at)


def head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits in fp32 from last hidden states, scaled and capped as the model's family does: (tokens, vocab)."""
    return finish_logits(model.config.get_text_config(), model.get_output_embeddings()(hidden))


def finish_logits(config: Any, logits: Tensor) -> Tensor:
    """What a family does to its logits after the head: Cohere scales, Granite divides, Gemma caps."""
    logits = logits.float()
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits


# Prompts of these many tokens, none of them like another, are what attention is chosen by.
_PROBE = (12, 5, 9)
# The windows of local attention while it is: shorter than the prompts, so that they show.
_WINDOW = 4
_WINDOWS = ("sliding_window", "attention_chunk_size")
# How far logits may be from the model's own, and from themselves when another row changes, relative to their size.
_SLACK = {torch.float32: (1e-3, 1e-5)}
_COARSE_SLACK = (5e-2, 5e-3)


def choose_attention(model: PreTrainedModel) -> None:
    """Packed where that gives the model's own logits, else padded.

    Raises ModelError where neither does: such a model would be trained on the wrong loss. A cap shows on large logits
    only and a window on long rows only, which no probe has: the head is made loud and the windows short.
    """
    vocabulary = model.config.get_text_config().vocab_size
    rows = [Example(tuple((n * i + 1) % vocabulary for i in range(1, n)), 1, True) for n in _PROBE]
    kind = model.config.model_type
    if model.get_output_embeddings() is None:
        raise ModelError(f"model type '{kind}' has no language-model head", param="model")
    with torch.inference_mode(), _loud(model), _short_windows(model):
        own = _own_logits(model, rows)
        if not torch.isfinite(own).all():
            raise ModelError("the model's logits are not finite: its weights are damaged", param="model")
        if _same_logits(model, rows, own, packing.NAME) or _same_logits(model, rows, own, _own_attention(model)):
            return
    raise ModelError(f"model type '{kind}' changes its logits in a way that is not known here", param="model")


@contextmanager
def _loud(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the head's logits are scaled to reach 100 in the first call, and by as much in every other."""
    factors: list[Tensor] = []

    def louder(_module: torch.nn.Module, _inputs: Any, logits: Tensor) -> Tensor:
        factors.append(100 / logits.abs().max().clamp_min(1e-30))
        return logits * factors[0]

    hook = model.get_output_embeddings().register_forward_hook(louder)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _short_windows(model: PreTrainedModel) -> Iterator[None]:
    """Within the block every window of local attention, in modules and configurations, is a few tokens."""
    holders: list[Any] = [*model.modules(), *(m.config for m in model.modules() if hasattr(m, "config"))]
    held = {(id(h), name): (h, vars(h)[name]) for h in holders for name in _WINDOWS if type(vars(h).get(name)) is int}
    for (_, name), (holder, _size) in held.items():
        setattr(holder, name, _WINDOW)
    try:
        yield
    finally:
        for (_, name), (holder, size) in held.items():
            setattr(holder, name, size)


def _own_logits(model: PreTrainedModel, rows: Sequence[Example]) -> Tensor:
    """Logits of the answer tokens from the model's own forward pass, row by row: (tokens, vocab)."""
    model.set_attn_implementation(_own_attention(model))
    try:
        lines = [torch.tensor([row.ids], device=model.device) for row in rows]
        return torch.cat([model(input_ids=line, use_cache=False).logits[0, :-1] for line in lines]).float()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # What a model's own code says to a configuration that it cannot run is of any type.
        said = f"{type(error).__name__}: {error}"
        raise ModelError(f"model type '{model.config.model_type}' does not run: {said}", param="model") from error


def _same_logits(model: PreTrainedModel, rows: Sequence[Example], own: Tensor, attention: str) -> bool:
    """Whether our forward pass gives the model's logits, of each row whatever the others hold."""
    model.set_attn_implementation(attention)
    vocabulary = model.config.get_text_config().vocab_size
    shortest = min(rows, key=lambda row: len(row.ids))
    others = [
        replace(row, ids=tuple((i + 1) % vocabulary for i in row.ids)) if row is shortest else row for row in rows
    ]
    batch, changed = collate(model, rows), collate(model, others)
    try:
        ours, then = (head(model, hidden_states(model, b)) for b in (batch, changed))
    except torch.OutOfMemoryError:
        raise
    except Exception:
        # Families answer an argument or a shape that they do not know with errors of any type.
        return False
    near, still = _SLACK.get(model.dtype, _COARSE_SLACK)
    kept = torch.tensor([row is not shortest for row in rows], device=batch.row.device)[batch.row]
    return _apart(ours, own) <= near and _apart(then[kept], ours[kept]) <= still


def _apart(logits: Tensor, wanted: Tensor) -> float:
    """The largest distance of one token's logits, relative to the mean size of those wanted."""
    distance = (logits - wanted).norm(dim=-1).max() / wanted.norm(dim=-1).mean().clamp_min(1e-30)
    return float(distance) if torch.isfinite(distance) else float("inf")
