"""Greedy answers, many rows at a time: padding on the left, and rows that have ended leave the batch.

transformers' own `generate` does the work in turns: each ends when enough rows have ended, and the next goes on from
the cache of those that have not.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from core.device import on_device
from core.events import StopFlag
from core.forward import generating

# A turn ends when this share of its rows, at most, is still being written; fewer rows than that are not worth a turn.
_ALIVE, _FEW = 0.7, 4


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: StopFlag,
    *,
    most_tokens: int | None = None,
) -> list[str]:
    """Greedy continuations, each ended by end-of-sequence or the limit, in the order of the prompts.

    Where keys and values of more than `most_tokens` tokens would be held at once, the rows are begun again in halves.
    After a stop the texts are worth nothing, and the caller must look at the flag.
    """
    made: dict[int, list[int]] = {}
    if max_new_tokens < 1:
        # The prompt fills all positions that the model has.
        return [""] * len(prompts)
    waiting = [list(range(len(prompts)))] if prompts else []
    with generating(model), _plainly(model):
        while waiting:
            rows = waiting.pop()
            left = _together(model, tokenizer.eos_token_id, prompts, rows, max_new_tokens, stop, most_tokens, made)
            if left:
                waiting += [part for part in (left[len(left) // 2 :], left[: len(left) // 2]) if part]
    texts = tokenizer.batch_decode([made.get(row, []) for row in range(len(prompts))], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _together(
    model: PreTrainedModel,
    eos: int,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    limit: int,
    stop: StopFlag,
    most_tokens: int | None,
    made: dict[int, list[int]],
) -> list[int]:
    """Write the rows' answers to `made`; returns those that were given up because memory would not have sufficed."""
    ids, mask = _left_padded([prompts[row] for row in rows], eos, model.device)
    width, alive, cache = ids.shape[1], list(rows), None
    while alive:
        room = None if most_tokens is None or len(alive) == 1 else most_tokens // len(alive)
        if room is not None and ids.shape[1] >= max(room, width + 1):
            return alive
        turn = _Turn(stop, eos, ids.shape[1], len(alive), room)
        out = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=limit - (ids.shape[1] - width),
            do_sample=False,
            use_cache=True,
            eos_token_id=eos,
            pad_token_id=eos,
            stopping_criteria=StoppingCriteriaList([turn]),
            return_dict_in_generate=True,
        )
        ids, cache = out.sequences, out.past_key_values
        written = ids[:, width:].tolist()
        full = ids.shape[1] - width >= limit
        going_on = [i for i, answer in enumerate(written) if not full and eos not in answer]
        for i in set(range(len(alive))) - set(going_on):
            answer = written[i]
            made[alive[i]] = answer[: answer.index(eos)] if eos in answer else answer
        if stop:
            return []
        alive = [alive[i] for i in going_on]
        if alive and len(alive) < len(ids):
            kept = on_device(going_on, ids.device)
            ids, mask = ids[kept], mask[kept]
            cache.batch_select_indices(kept)
        mask = torch.cat([mask, mask.new_ones(len(mask), ids.shape[1] - mask.shape[1])], 1)
    return []


def _left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, (rows, time): the pad's id may well stand in a prompt, so lengths say what is padding."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


class _Turn(StoppingCriteria):
    """Ends a turn for all: on request, when enough rows have ended, or when there is no room for another token."""

    def __init__(self, stop: StopFlag, eos: int, width: int, rows: int, room: int | None) -> None:
        self._stop, self._eos, self._room = stop, eos, room
        self._seen, self._rows = width, rows
        self._ended: Tensor | None = None

    def __call__(self, input_ids: Any, *_: Any, **__: Any) -> Any:
        new = (input_ids[:, self._seen :] == self._eos).any(1)
        self._seen = input_ids.shape[1]
        self._ended = new if self._ended is None else self._ended | new
        alive = self._rows - int(self._ended.sum())
        enough = self._rows > _FEW and alive <= _ALIVE * self._rows
        full = self._room is not None and self._seen >= self._room
        return torch.full((len(input_ids),), bool(self._stop) or enough or full, device=input_ids.device)


@contextmanager
def _plainly(model: PreTrainedModel) -> Iterator[None]:
    """Without the model's own generation settings (beams, penalties): what it holds shows in plain greedy text."""
    its_own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = its_own
