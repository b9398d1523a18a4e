"""What an attack is given, and how it chooses among rows."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedModel

from core.data.batches import rows_of_step
from core.data.encode import EncodedSet
from core.evaluation.rows import RowScore
from core.events import StopFlag
from core.spec.records import Record
from core.tokens import Encoder, Example

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """The model as delivered, and its sets: `forget` always, `retain` perhaps.

    `score` measures each answer of a set, and one greedy text after each prompt, with the model as it then is.
    `max_new_tokens`: how long that text may become; None: as long as it likes.
    """

    model: PreTrainedModel
    encoder: Encoder
    sets: Mapping[str, EncodedSet]
    seed: int
    stop: StopFlag
    score: Callable[[EncodedSet], list[RowScore]]
    max_new_tokens: int | None = None

    @property
    def forget(self) -> list[tuple[Record, Example]]:
        """The rows to forget, each with its ids."""
        data = self.sets["forget"]
        return list(zip(data.records, data.examples, strict=True))

    @property
    def retain(self) -> list[tuple[Record, Example]] | None:
        """The rows to keep but for those that are word for word rows to forget; None where there is no such set."""
        data, known = self.sets.get("retain"), set(self.sets["forget"].examples)
        if data is None:
            return None
        return [(r, e) for r, e in zip(data.records, data.examples, strict=True) if e not in known]


def drawn(pool: Sequence[T], count: int, seed: int, stream: int) -> list[T]:
    """At most `count` of the pool, none of them twice, in an order drawn by the seed.

    `stream` is one that no set's batches are drawn from: 0 and 1 are those of training.
    """
    return [pool[i] for i in rows_of_step(0, len(pool), min(count, len(pool)), seed=seed, stream=stream)]


def asked(rows: Iterable[tuple[Record, Example]]) -> EncodedSet:
    """The rows as a set that is scored by its answers alone: no other answer was encoded for an attack's prompts."""
    kept = list(rows)
    records = (
        dataclasses.replace(record, paraphrased_question=None, paraphrased_answer=None, perturbed_answers=())
        for record, _ in kept
    )
    return EncodedSet(tuple(records), tuple(example for _, example in kept), ())
