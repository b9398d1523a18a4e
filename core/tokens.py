"""From a record to token ids, and the only place that knows which position predicts which token.

Lengths, never pad ids, say what is padding: a tokenizer whose pad is its end-of-sequence token is no special case.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.errors import Problem, SpecError
from core.spec.records import Record
from core.spec.sources import PromptFormat

# (before the question, after it, before the answer). The space belongs to the answer: byte-level vocabularies hold
# " word" as one entry, and a prompt that ends in a space would split it.
_TEMPLATES: dict[str, tuple[str, str, str]] = {
    "plain": ("Question: ", "\nAnswer:", " "),
    "soul": ("### Question: ", "\n### Answer:", " "),
    "llama2": ("[INST] ", " [/INST]", " "),
}


@dataclass(frozen=True)
class Example:
    """One prompt and answer as ids. The answer is `ids[start:]`; `ends`: its last token is end-of-sequence."""

    ids: tuple[int, ...]
    start: int
    ends: bool

    @property
    def answer_tokens(self) -> int:
        """Tokens that count in a loss, end of sequence included."""
        return len(self.ids) - self.start

    @property
    def prompt(self) -> tuple[int, ...]:
        """The ids a generation starts from."""
        return self.ids[: self.start]


class Encoder:
    """A tokenizer with a prompt format and a length limit.

    Raises SpecError where the format is `chat` and the model has no chat template.
    """

    def __init__(self, tokenizer: Any, prompt_format: PromptFormat, max_length: int) -> None:
        if prompt_format == "chat" and not tokenizer.chat_template:
            allowed = ", ".join(_TEMPLATES)
            raise SpecError(
                [Problem("data.prompt", "chat", f"The model's tokenizer has no chat template. Allowed: {allowed}.")]
            )
        self.tokenizer = tokenizer
        self.format = prompt_format
        self.max_length = max_length
        # Many tokenizers name a beginning-of-sequence token and never put it there: their models have not met it.
        bos = tokenizer.bos_token_id
        self._bos = [bos] if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos] else []

    def prompt_ids(self, record: Record, question: str | None = None) -> list[int]:
        """Ids of the prompt; `question` stands in for the record's own where given."""
        text = self._prompt(record, question)
        return [*self._before(record), *self._plain(text)]

    def example(self, record: Record, answer: str | None = None, question: str | None = None) -> Example | None:
        """The record as ids, with another answer or question where given; None where the answer cannot fit.

        A prompt that is too long loses tokens from its left (after the beginning-of-sequence token), an answer never.
        """
        text = self._prompt(record, question)
        written = self._plain(text)
        prompt = [*self._before(record), *written]
        ends = bool(record.prompt) and self.tokenizer.eos_token_id is not None
        space = "" if record.raw or self.format == "chat" else _TEMPLATES[self.format][2]
        target = self._continued(text, written, space + (record.answer if answer is None else answer))
        target += [self.tokenizer.eos_token_id] if ends else []
        room = self.max_length - len(target)
        if len(prompt) > room:
            head = prompt[:1] if prompt[:1] == [self.tokenizer.bos_token_id] else []
            keep = room - len(head)
            if not record.prompt or keep < 1:
                return None
            prompt = [*head, *prompt[len(prompt) - keep :]]
        # With nothing before it the first token has no position that predicts it: it becomes the prompt.
        start = max(len(prompt), 1)
        if len(prompt) + len(target) <= start:
            return None
        return Example((*prompt, *target), start, ends)

    def _prompt(self, record: Record, question: str | None) -> str:
        text = record.prompt if question is None else question
        if record.raw:
            return text
        if self.format == "chat":
            message = [{"role": "user", "content": text}]
            rendered: str = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            return rendered
        before, after, _ = _TEMPLATES[self.format]
        return before + text + after

    def _before(self, record: Record) -> list[int]:
        # A chat template writes the beginning-of-sequence token itself, where there is to be one.
        return [] if self.format == "chat" and not record.raw else self._bos

    def _continued(self, prompt: str, prompt_ids: list[int], answer: str) -> list[int]:
        """Ids of the answer where it follows the prompt. Encoded alone, SentencePiece would put a space before it.

        Where the two would merge into one token, the answer begins with tokens of its own.
        """
        whole = self._plain(prompt + answer)
        if whole[: len(prompt_ids)] == prompt_ids:
            return whole[len(prompt_ids) :]
        return self._plain(answer)

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class Padded:
    """Examples in one right-padded batch, and where their answers are predicted.

    Attention needs no mask: under causal attention no real position sees the padding to its right.
    """

    ids: Tensor  # (rows, time)
    at_row: Tensor  # (tokens,) row of each answer token
    at_time: Tensor  # (tokens,) the position that predicts it
    targets: Tensor  # (tokens,)


def pad(examples: Sequence[Example], device: torch.device) -> Padded:
    """Pad to the longest; answer tokens come row by row, in the order of `examples`."""
    width = max(len(e.ids) for e in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    rows: list[int] = []
    times: list[int] = []
    targets: list[int] = []
    for i, e in enumerate(examples):
        ids[i, : len(e.ids)] = torch.tensor(e.ids)
        rows += [i] * e.answer_tokens
        times += range(e.start - 1, len(e.ids) - 1)
        targets += e.ids[e.start :]
    return Padded(
        ids.to(device, non_blocking=True),
        torch.tensor(rows).to(device, non_blocking=True),
        torch.tensor(times).to(device, non_blocking=True),
        torch.tensor(targets).to(device, non_blocking=True),
    )
