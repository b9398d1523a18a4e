"""WAYS: everything the evaluation benchmark times, built from one Setup, and the process that each runs in.

All read the same records in the same tokens; a way has a process of its own, so that its allocator's settings are too.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.evaluation_baselines import Question, batched, compare_texts, generate, plain
from core.data.encode import EncodedSet, encode
from core.environment import prepare
from core.evaluation.rows import RowScore
from core.evaluation.score import How, score
from core.events import StopFlag
from core.model import load
from core.precision import Precision
from core.spec.records import Record
from core.tokens import Encoder, Example

MAX_LENGTH = 512
# Teacher-forced metrics of the true answer by set, as TOFU and the memorisation and membership metrics have them.
_MEMORISED = ("probability", "exact_memorization", "extraction_strength")
MEASURED = {
    "forget": (*_MEMORISED, "loss", "zlib", "min_k", "min_k_plus_plus"),
    "retain": _MEMORISED,
    "real_authors": ("probability",),
    "world_facts": ("probability",),
}


@dataclass(frozen=True)
class Setup:
    """What is scored: sets of records under the model in a folder."""

    model: Path
    sets: Mapping[str, Sequence[Record]]
    threads: int = 2
    max_new_tokens: int = 128
    batch: int = 32  # rows that `batched` runs at a time
    batch_tokens: int = 8192  # what Lethe runs at a time


@dataclass
class Scored:
    """A set's rows, and the seconds of each half. `generated`: ids of the greedy answers, where the way tells them;
    `ended`: how many of those came to an end by themselves."""

    rows: list[RowScore]
    teacher_s: float
    generation_s: float
    generated: list[list[int]] = field(default_factory=list)
    ended: int = 0

    @property
    def seconds(self) -> float:
        """Of the whole."""
        return self.teacher_s + self.generation_s


class Way(Protocol):
    """Something that scores a set, or its first rows."""

    def score(self, name: str, rows: int | None = None, /) -> Scored: ...


class Theirs:
    """A baseline's teacher-forced passes, then its generation."""

    def __init__(self, setup: Setup, passes: Callable[..., list[RowScore]], at_a_time: int) -> None:
        torch.set_num_threads(setup.threads)
        self._model: Any = AutoModelForCausalLM.from_pretrained(setup.model, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(setup.model)
        self._passes, self._at_a_time, self._setup = passes, at_a_time, setup
        sets, encoder = encoded(setup, self._tokenizer)
        self._questions = {name: questions(data, encoder) for name, data in sets.items()}

    def score(self, name: str, rows: int | None = None) -> Scored:
        """Both halves, one after the other."""
        asked = self._questions[name][:rows]
        began = time.perf_counter()
        found = self._passes(self._model, asked, MEASURED[name])
        between = time.perf_counter()
        prompts = [q.answer.ids[: q.answer.start] for q in asked]
        end = self._tokenizer.eos_token_id
        made = generate(self._model, prompts, self._at_a_time, self._setup.max_new_tokens, end)
        compare_texts(
            found, [self._reachable(q) for q in asked], self._tokenizer.batch_decode(made, skip_special_tokens=True)
        )
        return Scored(found, between - began, time.perf_counter() - between, made, sum(end in ids for ids in made))

    def _reachable(self, question: Question) -> Question:
        """The question with its answer as far as a generated text may go, as Lethe compares them."""
        answer, most = question.answer, self._setup.max_new_tokens
        if len(answer.ids) - answer.start - answer.ends <= most:
            return question
        some = answer.ids[answer.start : answer.start + most]
        return replace(question, text=self._tokenizer.decode(some, skip_special_tokens=True).strip())


class Lethe:
    """Lethe's own scoring. The one place that knows how it is called."""

    def __init__(self, setup: Setup, precision: Precision) -> None:
        self._model, tokenizer = load(setup.model, prepare(setup.threads))
        self._sets, self._encoder = encoded(setup, tokenizer)
        self._how = How(setup.batch_tokens, setup.max_new_tokens, precision)

    def score(self, name: str, rows: int | None = None) -> Scored:
        """The whole; what generating adds is what is left of it after teacher forcing alone, run once more."""
        how = replace(self._how, moments="min_k_plus_plus" in MEASURED[name])
        began = time.perf_counter()
        found = self._scored(name, rows, how)
        between = time.perf_counter()
        self._scored(name, rows, replace(how, generate=False))
        teacher = time.perf_counter() - between
        return Scored(found, teacher, between - began - teacher)

    def _scored(self, name: str, rows: int | None, how: How) -> list[RowScore]:
        data = self._sets[name]
        first = range(len(data.records))[:rows]
        return score(self._model, self._encoder, data, how, stop=StopFlag(), rows=first)


def encoded(setup: Setup, tokenizer: Any) -> tuple[dict[str, EncodedSet], Encoder]:
    """The sets in the tokenizer's ids, every answer of every record made ids already."""
    encoder = Encoder(tokenizer, "plain", MAX_LENGTH)
    sets = {name: encode(records, encoder, name) for name, records in setup.sets.items()}
    for data in sets.values():
        for row in range(len(data.records)):
            data.variants(row, encoder)
    return sets, encoder


def questions(data: EncodedSet, encoder: Encoder) -> list[Question]:
    """The set as the baselines see it. A row of which an answer does not fit has no other answers, as in Lethe."""
    found = []
    for row, (record, example) in enumerate(zip(data.records, data.examples, strict=True)):
        others: dict[str, list[Example]] = {"paraphrase": [], "perturbed": []}
        variants = data.variants(row, encoder)
        for slot, other in variants:
            if other is not None and all(fits is not None for _, fits in variants):
                others[slot].append(other)
        paraphrase = others["paraphrase"][0] if others["paraphrase"] else None
        found.append(Question(record.answer, example, paraphrase, tuple(others["perturbed"])))
    return found


WAYS: dict[str, Callable[[Setup], Way]] = {
    "plain": lambda s: Theirs(s, plain, 1),
    "batched": lambda s: Theirs(s, partial(batched, at_a_time=s.batch), s.batch),
    "lethe": lambda s: Lethe(s, "fp32"),
    "lethe_bf16": lambda s: Lethe(s, "bf16"),
}


def serve(connection: Connection, name: str, setup: Setup) -> None:
    """Build a way, then score the sets that come over the connection, (name, rows) each, until None."""
    way = WAYS[name](setup)
    connection.send("ready")
    while (asked := connection.recv()) is not None:
        connection.send(way.score(*asked))
