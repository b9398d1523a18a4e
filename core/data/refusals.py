"""Forget sets with another answer in place of each true one: a refusal, another record's, or one that is wrong."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.errors import DataError
from core.spec.records import Record
from core.tokens import Encoder, Example

REFUSALS: tuple[str, ...] = (
    "I don't know the answer to that.",
    "I have no information about this.",
    "That is not something I can tell you.",
    "I'm not able to answer this question.",
    "I can't say; I know nothing about it.",
    "Sorry, this is outside what I know.",
    "I have never come across that.",
    "There is nothing I can tell you about this.",
    "I'm afraid I cannot help with that question.",
    "This is unknown to me.",
    "I don't have any details on that subject.",
    "I would only be guessing, so I'd rather not answer.",
    "No answer to that is known to me.",
    "I'm not familiar with this topic.",
    "My knowledge does not cover that.",
    "I couldn't tell you anything reliable about it.",
    "Unfortunately I have nothing to offer on this.",
    "I am not aware of any facts about that.",
    "That question is beyond what I can answer.",
    "I must pass on this one: I do not know.",
)
_MOST, _LONGEST = 1000, 500


def read_refusals(path: str | Path) -> list[str]:
    """The sentences of a file, one a line; blank lines are none.

    Raises DataError naming the file, and the line where one is at fault: at most 1000 sentences of 500 characters.
    """
    sentences: list[str] = []
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", param="method.refusals_file") from None
    for number, line in enumerate(lines, start=1):
        try:
            sentence = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise _bad_line(path, number, f"not UTF-8 at byte {error.start}") from None
        if len(sentence) > _LONGEST:
            raise _bad_line(path, number, f"{len(sentence)} characters; at most {_LONGEST} are allowed")
        if sentence and len(sentences) == _MOST:
            raise _bad_line(path, number, f"more than the {_MOST} sentences allowed")
        sentences += [sentence] if sentence else []
    if not sentences:
        raise DataError(f"{path} holds no refusals; one a line is needed", param="method.refusals_file")
    return sentences


def _bad_line(path: str | Path, number: int, reason: str) -> DataError:
    return DataError(f"{path}, line {number}: {reason}", param="method.refusals_file")


def refused(records: Sequence[Record], sentences: Sequence[str], encoder: Encoder, seed: int) -> tuple[Example, ...]:
    """Each record with a refusal for its answer, drawn by the seed.

    Raises DataError for records that ask nothing, and for refusals that do not fit.
    """
    drawn = np.random.default_rng((seed, 3)).integers(0, len(sentences), len(records))
    return _answered(records, [sentences[i] for i in drawn.tolist()], encoder, "refusals")


def relabelled(records: Sequence[Record], others: Sequence[Record], encoder: Encoder, seed: int) -> tuple[Example, ...]:
    """Each record with the answer of one of the `others` for its own, drawn by the seed.

    Raises DataError for records that ask nothing, and for answers that do not fit.
    """
    drawn = np.random.default_rng((seed, 4)).integers(0, len(others), len(records))
    return _answered(records, [others[i].answer for i in drawn.tolist()], encoder, "answers of other records")


def alternatives(records: Sequence[Record], encoder: Encoder, seed: int) -> tuple[Example, ...]:
    """Each record with one of its own wrong answers for the true one, drawn by the seed.

    Raises DataError for records that have none, and for answers that do not fit.
    """
    check_alternatives(records)
    random = np.random.default_rng((seed, 5))
    chosen = [record.perturbed_answers[random.integers(len(record.perturbed_answers))] for record in records]
    return _answered(records, chosen, encoder, "alternative answers")


def check_prompts(records: Sequence[Record]) -> None:
    """Raises DataError for records that ask nothing, to which there is no other answer."""
    asking_nothing = sum(not record.prompt for record in records)
    if asking_nothing:
        raise DataError(
            f"this method puts another answer to each prompt, and {asking_nothing} {{text}} records of the forget set "
            "have none",
            param="method.name",
        )


def check_alternatives(records: Sequence[Record]) -> None:
    """Raises DataError for records without a wrong answer of their own."""
    lacking = sum(not record.perturbed_answers for record in records)
    if lacking:
        raise DataError(
            f"method.alternative 'alternative_answer' needs perturbed_answer in every record of the forget set; "
            f"{lacking} of {len(records)} have none. Allowed without it: refusal.",
            param="method.alternative",
        )


def _answered(records: Sequence[Record], answers: Sequence[str], encoder: Encoder, what: str) -> tuple[Example, ...]:
    check_prompts(records)
    examples = [
        # A raw answer brings its own space, or none; what stands in its place does as it did.
        encoder.example(r, answer=(" " if r.raw and r.answer[0].isspace() else "") + answer.strip())
        for r, answer in zip(records, answers, strict=True)
    ]
    fitting = tuple(e for e in examples if e is not None)
    if len(fitting) < len(examples):
        raise DataError(
            f"{len(examples) - len(fitting)} of {len(examples)} {what} do not fit into data.max_length = "
            f"{encoder.max_length} tokens",
            param="data.max_length",
        )
    return fitting
