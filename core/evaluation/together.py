"""What a model gets right of writing many texts at once: prompts padded on their left, and rows taken out of its cache.

Keys and values of attention allow both. A recurrent state may take padding for text, and transformers' class of it
gives no rows up.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from core.forward import generating


@dataclass(frozen=True)
class Together:
    """`batches`: beside a longer prompt, and so padded, one is continued as it is alone; `drops`: and so it is when the
    longer has been taken out."""

    batches: bool = True
    drops: bool = True


# Prompts of so many tokens, and how far logits may be from those of the prompt alone, relative to their size.
_PROBE = (3, 11)
_SLACK, _COARSE_SLACK = 1e-3, 5e-2
_KNOWN: WeakKeyDictionary[PreTrainedModel, Together] = WeakKeyDictionary()


@torch.inference_mode()
def together(model: PreTrainedModel) -> Together:
    """What the model is able to: found out by trying, once."""
    if model not in _KNOWN:
        with plainly(model):
            _KNOWN[model] = _tried(model)
    return _KNOWN[model]


@contextmanager
def plainly(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model generates in transformers' own way, and without its own settings (beams, penalties):
    what it holds shows in plain greedy text."""
    its_own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with generating(model):
            yield
    finally:
        model.generation_config = its_own


def left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, (rows, time): the pad's id may well stand in a prompt, so lengths say what is padding."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _tried(model: PreTrainedModel) -> Together:
    vocabulary = model.config.get_text_config().vocab_size
    short, long = ([(n * i + 1) % vocabulary for i in range(n)] for n in _PROBE)
    slack = _SLACK if model.dtype == torch.float32 else _COARSE_SLACK
    try:
        wanted, _ = _written(model, *left_padded([short], 0, model.device), 2)
        ids, mask = left_padded([short, long], 0, model.device)
        found, _ = _written(model, ids, mask, 2)
        if _apart(found[:, :1], wanted) > slack:
            return Together(batches=False, drops=False)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        # Families answer what they do not know with errors of any type.
        return Together(batches=False, drops=False)
    try:
        _, out = _written(model, ids, mask, 1)
        kept = torch.tensor([0], device=ids.device)
        out.past_key_values.batch_select_indices(kept)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        found, _ = _written(model, out.sequences[kept], mask[kept], 1, out.past_key_values)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return Together(drops=False)
    return Together(drops=_apart(found, wanted[1:]) <= slack)


def _written(model: PreTrainedModel, ids: Tensor, mask: Tensor, steps: int, cache: Any = None) -> tuple[Tensor, Any]:
    """Logits of each new token, (steps, rows, vocab), and what else `generate` returns."""
    out = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        past_key_values=cache,
        max_new_tokens=steps,
        do_sample=False,
        use_cache=True,
        logits_processor=LogitsProcessorList([_Always()]),
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(out.logits).float(), out


class _Always(LogitsProcessor):
    """Has one and the same token written, so that a near tie cannot send two texts apart."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ARG002 -- transformers' signature
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, 0] = 0
        return chosen


def _apart(logits: Tensor, wanted: Tensor) -> float:
    """How far from those wanted, relative to their size; what all of a token's logits have in common says nothing."""
    logits, wanted = (each - each.mean(-1, keepdim=True) for each in (logits, wanted))
    distance = (logits - wanted).norm() / wanted.norm().clamp_min(1e-30)
    return float(distance) if torch.isfinite(distance) else float("inf")
