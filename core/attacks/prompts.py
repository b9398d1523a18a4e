"""Attacks that leave the weights alone and ask differently: in other words, after the first words of the answer, or
after other questions with their answers."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from core.attacks.target import Target, asked, drawn
from core.data.encode import EncodedSet
from core.model import positions
from core.report.schema import Absent
from core.spec.attacks import FewShot, Paraphrase, Prefix
from core.spec.records import Record
from core.tokens import Encoder, Example

# The stream that shots are drawn from; relearning has 2 and 3.
_SHOTS = 4

Row = tuple[Record, Example]


def paraphrase(_: Paraphrase, target: Target) -> EncodedSet | Absent:
    """The rows that have a paraphrased question, asked that."""
    records = [record for record, _ in target.forget if record.paraphrased_question]
    if not records:
        return Absent(absent="no forget row has a paraphrased question")
    made = [(record, target.encoder.example(record, question=record.paraphrased_question)) for record in records]
    rows = [(record, example) for record, example in made if example is not None]
    if not rows:
        return Absent(absent="no paraphrased question fits into data.max_length with its answer")
    return asked(rows)


def prefix(spec: Prefix, target: Target) -> EncodedSet | Absent:
    """The rows whose answer goes on after k tokens, with these in the prompt.

    What is left of the answer stands in the record, as far as a generation of `max_new_tokens` could say it; of a text,
    which has no prompt, what was given away becomes one.
    """
    rows = [row for row in _begun(spec.k, target) if any(c.isalnum() for c in row[0].answer)]
    if not rows:
        return Absent(absent=f"no forget answer goes on for a word after its first {spec.k} tokens")
    return asked(rows)


def _begun(k: int, target: Target) -> Iterator[Row]:
    for record, example in target.forget:
        start, last = example.start + k, len(example.ids) - example.ends
        if start >= last:
            continue
        end = last if target.max_new_tokens is None else min(last, start + target.max_new_tokens)
        prompt = record.prompt or _text(target.encoder, example.ids[:start])
        rest = _text(target.encoder, example.ids[start:end])
        yield dataclasses.replace(record, prompt=prompt, answer=rest), Example(example.ids, start, example.ends)


def _text(encoder: Encoder, ids: tuple[int, ...]) -> str:
    written: Any = encoder.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(written).strip()


def few_shot(spec: FewShot, target: Target) -> EncodedSet | Absent:
    """The rows that are asked something, after the same retain rows with their answers, as many as there is room for.

    A row without room for any is left out, and so is a text, which nobody asks for.
    """
    retain = target.retain
    if retain is None:
        return Absent(absent="there is no retain set to take questions from")
    rows = [(record, example) for record, example in target.forget if record.prompt]
    if not rows:
        return Absent(absent="no forget row has a prompt to put other questions in front of")
    pool = [(record, example) for record, example in retain if record.prompt]
    if not pool:
        return Absent(absent="no retain row has a prompt, or all are word for word forget rows")
    shots = [_shot(target.encoder, *row) for row in drawn(pool, spec.shots, target.seed, _SHOTS)]
    # No prompt may take the room that the longest answer of the set needs: all have one limit in generation.
    most = positions(target.model) - max(example.answer_tokens for _, example in rows)
    made = [(record, _after(shots, target.encoder, example, most)) for record, example in rows]
    kept = [(record, example) for record, example in made if example is not None]
    if not kept:
        room = "within data.max_length and the model's positions"
        return Absent(absent=f"no forget row has room for another question {room}")
    return asked(kept)


def _shot(encoder: Encoder, record: Record, example: Example) -> tuple[int, ...]:
    """Prompt and answer as they stand between others: without the ids that begin and end a sequence, on lines of their
    own. In a chat the last id ends a turn, and stays."""
    turn = encoder.format == "chat" and not record.raw
    ids = example.ids[len(_beginning(encoder, example)) :]
    return (*(ids if turn or not example.ends else ids[:-1]), *_line_break(encoder.tokenizer))


def _after(shots: list[tuple[int, ...]], encoder: Encoder, example: Example, most: int) -> Example | None:
    """The example with every shot in front that its prompt still has room for; None where that is none."""
    room = min(encoder.max_length - example.answer_tokens, most) - example.start
    front: tuple[int, ...] = ()
    for shot in shots:
        if len(front) + len(shot) <= room:
            front += shot
    begin = _beginning(encoder, example)
    ids = (*begin, *front, *example.ids[len(begin) :])
    return Example(ids, example.start + len(front), example.ends) if front else None


def _beginning(encoder: Encoder, example: Example) -> tuple[int, ...]:
    """The beginning-of-sequence id, where the example has one."""
    return example.ids[:1] if example.ids[0] == encoder.tokenizer.bos_token_id else ()


def _line_break(tokenizer: Any) -> list[int]:
    # Encoded alone, SentencePiece would put a space before it.
    word, whole, alone = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("a", "a\n", "\n"))
    return list(whole[len(word) :] if whole[: len(word)] == word else alone)
