"""A set of records as the trainer and the scorer see it: examples, their lengths, and what did not fit."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import DataError
from core.spec.records import Record
from core.tokens import Encoder, Example


@dataclass(frozen=True)
class EncodedSet:
    """Examples in the order of their records. `too_long` are the positions of records whose answer cannot fit."""

    records: tuple[Record, ...]
    examples: tuple[Example, ...]
    too_long: tuple[int, ...]

    @property
    def answer_tokens(self) -> int:
        """Answer tokens of the whole set."""
        return sum(e.answer_tokens for e in self.examples)


def encode(records: Sequence[Record], encoder: Encoder, name: str) -> EncodedSet:
    """Encode a set; a record that cannot fit is left out and counted. Raises DataError where none fits."""
    kept: list[Record] = []
    examples: list[Example] = []
    too_long: list[int] = []
    for i, record in enumerate(records):
        example = encoder.example(record)
        if example is None:
            too_long.append(i)
        else:
            kept.append(record)
            examples.append(example)
    if not examples:
        raise DataError(f"no record of the {name} set fits into data.max_length = {encoder.max_length} tokens")
    return EncodedSet(tuple(kept), tuple(examples), tuple(too_long))
