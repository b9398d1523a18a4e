"""A model in memory as lm-evaluation-harness sees it: lm-eval's own text handling over Lethe's forward pass.

Import it inside functions only: lm-eval takes seconds.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor
from transformers import PreTrainedModel

from core.data.batches import by_length
from core.events import StopFlag
from core.forward import collate, generating, head, hidden_states, packs
from core.model import positions
from core.tokens import Batch, Example, pad
from core.views import in_chunks

# Windows of a long text that lm-eval hands over at once.
_WINDOWS = 256

Request = tuple[Any, list[int], list[int]]  # what it is known by, ids of the context, ids of the continuation


class _BrokenOff(Exception):
    """Raised in a forward pass when a stop was asked for while a text was being generated."""


class InMemory(HFLM):  # type: ignore[misc]
    """Log-likelihoods come from logits at continuation tokens alone, and what requests have in common is computed once.

    At most `batch_tokens` tokens go through the model at once, or one request. `tokenizer` is changed (lm-eval gives it
    a padding token), the model is not. Raises Stopped between batches.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, *, batch_tokens: int, max_length: int, stop: StopFlag
    ) -> None:
        super().__init__(
            pretrained=model, tokenizer=tokenizer, batch_size=_WINDOWS, max_length=min(max_length, positions(model))
        )
        self._batch_tokens = batch_tokens
        self._stop = stop

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:  # (log-likelihood of the continuation in nats, whether argmax would write it)
        del disable_tqdm, override_bs  # lm-eval's, which has bars and batches of its own
        examples = [self._example(context, continuation) for _, context, continuation in requests]
        found: dict[int, tuple[float, bool]] = {}
        for batch in self._batches(examples):
            self._stop.check()
            found.update(zip(batch, self._scored([examples[i] for i in batch]), strict=True))
        return [found[i] for i in range(len(examples))]

    def _example(self, context: list[int], continuation: list[int]) -> Example:
        if len(continuation) > self.max_length:
            said = f"a continuation of {len(continuation)} tokens; the model takes {self.max_length}"
            raise ValueError(said)
        # The last token is predicted and never read, so that one more fits than the model takes.
        ids = (*context, *continuation)[-(self.max_length + 1) :]
        return Example(ids, len(ids) - len(continuation), ends=False)

    def _batches(self, examples: Sequence[Example]) -> list[list[int]]:
        def length(i: int) -> int:
            return len(examples[i].ids)

        limit = positions(self.model)
        fits = [i for i in range(len(examples)) if length(i) <= limit]
        over = [i for i in range(len(examples)) if length(i) > limit]
        if not packs(self.model):
            return by_length(fits, length, self._batch_tokens) + by_length(over, length, self._batch_tokens)
        # Neighbours in the order of their ids have the longest beginnings in common: a context, examples before it.
        batches: list[list[int]] = []
        room = 0
        for i in sorted(fits, key=lambda i: examples[i].ids):
            if length(i) > room:
                batches.append([])
                room = self._batch_tokens
            batches[-1].append(i)
            room -= length(i)
        return batches + by_length(over, length, self._batch_tokens)

    def _scored(self, examples: Sequence[Example]) -> list[tuple[float, bool]]:
        if max(len(example.ids) for example in examples) > positions(self.model):
            with generating(self.model):
                return self._read(_without_last(pad(examples, self.device)), len(examples))
        return self._read(collate(self.model, examples, share=True), len(examples))

    def _read(self, batch: Batch, rows: int) -> list[tuple[float, bool]]:
        vocabulary = self.model.config.get_text_config().vocab_size
        hidden = hidden_states(self.model, batch)
        nll, wrong = in_chunks(_nll_and_miss, partial(head, self.model), vocabulary, hidden, batch.targets).unbind(-1)

        def of_rows(numbers: Tensor) -> list[float]:
            sums = torch.zeros(rows, dtype=torch.float64, device=self.device)
            return sums.index_add_(0, batch.row, numbers.double()).tolist()

        return [(-loss, misses == 0) for loss, misses in zip(of_rows(nll), of_rows(wrong), strict=True)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts as lm-eval's own model generates them, under the model's own generation settings."""
        del disable_tqdm
        width = max(len(self.tok_encode(context)) + self._new_tokens(how) for context, how in _arguments(requests))
        self.batch_size_per_gpu = max(1, self._batch_tokens // min(self.max_length, width))
        try:
            with generating(self.model):
                return super().generate_until(requests, disable_tqdm=True)  # type: ignore[no-any-return]
        finally:
            self.batch_size_per_gpu = _WINDOWS

    def _new_tokens(self, how: dict[str, Any]) -> int:
        return int(normalize_gen_kwargs(how, self.max_gen_toks)["max_gen_toks"])

    def _model_generate(self, *arguments: Any, **how: Any) -> Tensor:
        self._stop.check()

        def look(*_: Any) -> None:
            if self._stop:
                raise _BrokenOff

        hook = self.model.register_forward_pre_hook(look)
        try:
            return super()._model_generate(*arguments, **how)  # type: ignore[no-any-return]
        except _BrokenOff:
            # Asked of all processes, at the same place in each.
            self._stop.check()
            raise
        finally:
            hook.remove()


def _nll_and_miss(logits: Tensor, targets: Tensor) -> Tensor:
    """(tokens, 2): the loss, and 1 where argmax is another token."""
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return torch.stack([nll, (logits.argmax(-1) != targets).float()], -1)


def _arguments(requests: Sequence[Any]) -> list[tuple[str, dict[str, Any]]]:
    return [request.args for request in requests]


def _without_last(batch: Batch) -> Batch:
    """The padded rows without their last column, where no answer token is predicted."""
    width = batch.ids.shape[1]
    at = batch.at - batch.at // width
    return Batch(batch.ids[:, :-1], None, None, at, batch.row, batch.targets)
