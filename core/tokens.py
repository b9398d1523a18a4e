"""From a record to token ids, and the only place that knows which position predicts which token.

Lengths, never pad ids, say what is padding: a tokenizer whose pad is its end-of-sequence token is no special case.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.device import on_device
from core.errors import Problem, SpecError
from core.packing import Layout
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
    """A tokenizer with a prompt format and a length limit; `system` is put in front of every prompt.

    Raises SpecError where the format is `chat` and the model has no chat template.
    """

    def __init__(self, tokenizer: Any, prompt_format: PromptFormat, max_length: int, system: str | None = None) -> None:
        if prompt_format == "chat" and not tokenizer.chat_template:
            allowed = ", ".join(_TEMPLATES)
            raise SpecError(
                [Problem("data.prompt", "chat", f"The model's tokenizer has no chat template. Allowed: {allowed}.")]
            )
        self.tokenizer = tokenizer
        self.format = prompt_format
        self.max_length = max_length
        self.system = system
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
        guard = f"{self.system}\n\n" if self.system else ""
        if record.raw:
            return guard + text if text else text
        if self.format == "chat":
            return self._chat(text)
        before, after, _ = _TEMPLATES[self.format]
        return guard + before + text + after

    def _chat(self, text: str) -> str:
        messages = [{"role": "user", "content": text}]
        if self.system:
            try:
                return self._rendered([{"role": "system", "content": self.system}, *messages])
            except jinja2.exceptions.TemplateError:
                # The template knows no system role: what it would say stands at the head of the user's turn.
                messages = [{"role": "user", "content": f"{self.system}\n\n{text}"}]
        return self._rendered(messages)

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        rendered: str = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return rendered

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
class Batch:
    """Examples of one forward pass, packed into one line or padded on the right, and where answers are predicted.

    Answer tokens come row by row in the order of the examples, wherever their rows lie. Padding needs no mask: under
    causal attention no real position sees what stands to its right.
    """

    ids: Tensor  # (1, all tokens) packed, (rows, time) padded
    positions: Tensor | None  # as `ids`: where each token stands in its own row; None: as it stands in its line
    layout: Layout | None  # of the packed line
    at: Tensor  # (tokens,) place in the flattened ids that predicts each answer token
    row: Tensor  # (tokens,) the example it belongs to
    targets: Tensor  # (tokens,)


def pack(examples: Sequence[Example], device: torch.device, *, share: bool = False) -> Batch:
    """All rows in one line, the shortest first: no linear layer sees a token that is not there.

    With `share` a beginning that several rows have in common stands in the line once.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    lengths = [len(examples[i].ids) for i in order]
    if share:
        return _shared(examples, order, lengths, device)
    begins = dict(zip(order, np.cumsum([0, *lengths[:-1]]).tolist(), strict=True))
    ids = [t for i in order for t in examples[i].ids]
    positions = np.concatenate([np.arange(n) for n in lengths])
    return Batch(
        on_device(ids, device)[None],
        on_device(positions, device)[None],
        Layout(tuple(lengths), device),
        *_answers(examples, [np.arange(begins[i], begins[i] + len(e.ids)) for i, e in enumerate(examples)], device),
    )


def _shared(examples: Sequence[Example], order: Sequence[int], lengths: Sequence[int], device: torch.device) -> Batch:
    """The rows as paths of a tree of tokens, each node of which stands in the line once.

    In the order of their ids each row shares with the one before it the longest beginning that it shares with any.
    """
    places: dict[int, NDArray[np.int64]] = {}  # of each row's tokens in the line
    ids: list[int] = []
    positions: list[NDArray[np.int64]] = []
    before, at = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for i in sorted(range(len(examples)), key=lambda i: examples[i].ids):
        row = np.asarray(examples[i].ids, dtype=np.int64)
        overlap = min(len(row), len(before))
        differs = np.flatnonzero(row[:overlap] != before[:overlap])
        common = int(differs[0]) if len(differs) else overlap
        at = np.concatenate([at[:common], np.arange(len(ids), len(ids) + len(row) - common)])
        places[i], before = at, row
        ids += row[common:].tolist()
        positions.append(np.arange(common, len(row)))
    source = np.concatenate([places[i] for i in order])
    # Where a token stands in several rows any of them will do: they computed the same.
    target = np.empty(len(ids), dtype=np.int64)
    target[source] = np.arange(len(source))
    return Batch(
        on_device(ids, device)[None],
        on_device(np.concatenate(positions), device)[None],
        Layout(tuple(lengths), device, on_device(source, device), on_device(target, device)),
        *_answers(examples, [places[i] for i in range(len(examples))], device),
    )


def pad(examples: Sequence[Example], device: torch.device) -> Batch:
    """A row an example, each as wide as the longest."""
    width = max(len(e.ids) for e in examples)
    ids = np.zeros((len(examples), width), dtype=np.int64)
    for line, e in zip(ids, examples, strict=True):
        line[: len(e.ids)] = e.ids
    places = [np.arange(i * width, i * width + len(e.ids)) for i, e in enumerate(examples)]
    return Batch(on_device(ids, device), None, None, *_answers(examples, places, device))


def _answers(
    examples: Sequence[Example], places: Sequence[NDArray[np.int64]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Where answers are predicted, whose they are, and what they are; `places`: where each row's tokens stand."""
    at = [own[e.start - 1 : -1] for own, e in zip(places, examples, strict=True)]
    rows = np.repeat(np.arange(len(examples)), [e.answer_tokens for e in examples])
    targets = [t for e in examples for t in e.ids[e.start :]]
    return on_device(np.concatenate(at), device), on_device(rows, device), on_device(targets, device)
