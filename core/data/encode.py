"""A set of records as the trainer and the scorer see it: examples, their lengths, and what did not fit.

Text longer than a sequence is divided. Token ids are made once and kept with the set, in memory only.
"""

import dataclasses
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from core.errors import DataError
from core.spec.records import Record
from core.tokens import Encoder, Example

# What a record may be scored by besides its own answer: "paraphrase" or "perturbed", and the ids if they fit.
Variant = tuple[str, Example | None]
_NO_LIMIT = 1 << 62


@dataclass(frozen=True)
class EncodedSet:
    """Examples in the order of their records. `too_long` are the positions of records whose answer cannot fit.

    `records` and `examples` go together one to one: of a text that was divided each piece is a record of its own.
    `origins` say of each the position of the record that it came from; a set put together of others has none.
    """

    records: tuple[Record, ...]
    examples: tuple[Example, ...]
    too_long: tuple[int, ...]
    origins: tuple[int, ...] = ()
    _variants: dict[int, tuple[Variant, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def answer_tokens(self) -> int:
        """Answer tokens of the whole set."""
        return sum(e.answer_tokens for e in self.examples)

    def rows_of(self, records: range) -> slice:
        """Where the examples lie that came from these records."""
        return slice(bisect_left(self.origins, records.start), bisect_left(self.origins, records.stop))

    def part(self, records: range) -> "EncodedSet":
        """What came from these records, as if the set had held no others."""
        rows, begin = self.rows_of(records), records.start
        too_long = tuple(i - begin for i in self.too_long if i in records)
        origins = tuple(i - begin for i in self.origins[rows])
        return EncodedSet(self.records[rows], self.examples[rows], too_long, origins)

    def variants(self, row: int, encoder: Encoder) -> tuple[Variant, ...]:
        """The row's paraphrased and perturbed answers; encoded at the first call, with the encoder of the set."""
        if row not in self._variants:
            record = self.records[row]
            others = [("paraphrase", record.paraphrased_answer), *(("perturbed", a) for a in record.perturbed_answers)]
            self._variants[row] = tuple((slot, encoder.example(record, answer=text)) for slot, text in others if text)
        return self._variants[row]


def encode(records: Sequence[Record], encoder: Encoder, name: str) -> EncodedSet:
    """Encode a set; a record that cannot fit is left out and counted. Raises DataError where none fits."""
    kept: list[tuple[Record, Example]] = []
    too_long: list[int] = []
    origins: list[int] = []
    known: dict[Record, list[tuple[Record, Example]]] = {}
    whole = Encoder(encoder.tokenizer, encoder.format, _NO_LIMIT)
    for i, record in enumerate(records):
        if record not in known:
            known[record] = list(_prompted(record, encoder) if record.prompt else _text(record, encoder, whole))
        if not known[record]:
            too_long.append(i)
        kept += known[record]
        origins += [i] * len(known[record])
    if not kept:
        message = f"no record of the {name} set fits into data.max_length = {encoder.max_length} tokens"
        raise DataError(message, param="data.max_length")
    return EncodedSet(tuple(r for r, _ in kept), tuple(e for _, e in kept), tuple(too_long), tuple(origins))


def _prompted(record: Record, encoder: Encoder) -> Iterator[tuple[Record, Example]]:
    example = encoder.example(record)
    if example is not None:
        yield record, example


def _text(text: Record, encoder: Encoder, whole: Encoder) -> Iterator[tuple[Record, Example]]:
    """The text, or pieces of it of at most max_length tokens, of which every token is predicted exactly once.

    A piece begins as a text does, with the beginning-of-sequence token; where the tokenizer puts none, with the last
    token of the piece before, so that only the very first token of the text is never predicted.
    """
    example = whole.example(text)
    if example is None:
        return
    if len(example.ids) <= encoder.max_length:
        yield text, example
        return
    ids, width = example.ids, encoder.max_length - 1
    begins_alike = bool(encoder.prompt_ids(Record("", "", raw=True)))
    for at in range(1, len(ids), width):
        piece = ids[at : at + width]
        before = ids[:1] if begins_alike else ids[at - 1 : at]
        shown = piece if begins_alike or at > 1 else before + piece
        written = encoder.tokenizer.decode(shown, clean_up_tokenization_spaces=False)
        yield dataclasses.replace(text, answer=written), Example((*before, *piece), 1, False)
