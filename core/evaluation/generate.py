"""Greedy answers, many rows at a time: padding on the left, and rows that have ended leave the batch.

transformers' own `generate` does the work in turns: each ends when enough rows have ended, and the next goes on from
the cache of those that have not. Where a model's cache gives no rows up there is one turn, and where a batch would
change its texts each row is written alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from core.device import on_device
from core.evaluation.together import left_padded, plainly, together
from core.events import StopFlag

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

    A chat model may end its turns with other special tokens than its tokenizer's; they end a text too.

    Where keys and values of more than `most_tokens` tokens would be held at once, the rows are begun again in halves.
    After a stop the texts are worth nothing, and the caller must look at the flag.
    """
    made: dict[int, list[int]] = {}
    if max_new_tokens < 1 or not prompts:
        # The prompt fills all positions that the model has.
        return [""] * len(prompts)
    ends = _ends(model, tokenizer)
    with plainly(model):
        able = together(model)
        way = _Way(ends, max_new_tokens, stop, most_tokens, able.drops)
        every = range(len(prompts))
        waiting = [list(every)] if able.batches else [[row] for row in every]
        while waiting and not stop:
            rows = waiting.pop()
            left = _write(model, prompts, rows, way, made)
            waiting += [part for part in (left[len(left) // 2 :], left[: len(left) // 2]) if part]
    texts = tokenizer.batch_decode([made.get(row, []) for row in range(len(prompts))], skip_special_tokens=True)
    return [text.strip() for text in texts]


@dataclass(frozen=True)
class _Way:
    """How texts are written. `ends`: tokens that end one; `drops`: whether rows can be taken out of the cache."""

    ends: list[int]
    limit: int
    stop: StopFlag
    most_tokens: int | None
    drops: bool


def _write(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], rows: Sequence[int], way: _Way, made: dict[int, list[int]]
) -> list[int]:
    """Write the rows' answers to `made`; returns those that were given up because memory would not have sufficed."""
    ids, mask = left_padded([prompts[row] for row in rows], way.ends[0], model.device)
    width, alive, cache = ids.shape[1], list(rows), None
    marks = on_device(way.ends, ids.device)
    while alive:
        room = None if way.most_tokens is None or len(alive) == 1 else way.most_tokens // len(alive)
        if room is not None and ids.shape[1] >= max(room, width + 1):
            return alive
        turn = _Turn(way, marks, ids.shape[1], len(alive), room)
        out = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=way.limit - (ids.shape[1] - width),
            do_sample=False,
            use_cache=True,
            eos_token_id=way.ends,
            pad_token_id=way.ends[0],
            stopping_criteria=StoppingCriteriaList([turn]),
            return_dict_in_generate=True,
        )
        ids, cache = out.sequences, out.past_key_values
        written = [_until(answer, way.ends) for answer in ids[:, width:].tolist()]
        length = ids.shape[1] - width
        going_on = [i for i, answer in enumerate(written) if len(answer) == length < way.limit]
        for i in set(range(len(alive))) - set(going_on):
            made[alive[i]] = written[i]
        if way.stop:
            return []
        alive = [alive[i] for i in going_on]
        if not way.drops:
            return alive
        if alive and len(alive) < len(ids):
            kept = on_device(going_on, ids.device)
            ids, mask = ids[kept], mask[kept]
            cache.batch_select_indices(kept)
        mask = torch.cat([mask, mask.new_ones(len(mask), ids.shape[1] - mask.shape[1])], 1)
    return []


def _ends(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """The tokens that end a text, the tokenizer's own first. A model's configuration may hold a default that says
    nothing: what else it names counts where the tokenizer knows it as a special token."""
    own = model.generation_config.eos_token_id
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = own if isinstance(own, list) else [own]
    return list(dict.fromkeys([tokenizer.eos_token_id, *(number for number in named if number in special)]))


def _until(answer: list[int], ends: Sequence[int]) -> list[int]:
    """What stands before the first token that ends a text."""
    return answer[: min((answer.index(end) for end in ends if end in answer), default=len(answer))]


class _Turn(StoppingCriteria):
    """Ends a turn for all: on request, when enough rows have ended, or when there is no room for another token."""

    def __init__(self, way: _Way, marks: Tensor, width: int, rows: int, room: int | None) -> None:
        self._way, self._marks, self._room = way, marks, room
        self._seen, self._rows = width, rows
        self._ended: Tensor | None = None

    def __call__(self, input_ids: Any, *_: Any, **__: Any) -> Any:
        new = torch.isin(input_ids[:, self._seen :], self._marks).any(1)
        self._seen = input_ids.shape[1]
        self._ended = new if self._ended is None else self._ended | new
        alive = self._rows - int(self._ended.sum())
        enough = self._way.drops and self._rows > _FEW and alive <= _ALIVE * self._rows
        full = self._room is not None and self._seen >= self._room
        return torch.full((len(input_ids),), bool(self._way.stop) or enough or full, device=input_ids.device)
