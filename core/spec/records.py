"""One record of a data set: what a line of JSON may hold, read the same way by the upload door and by the engine."""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from core.errors import DataError

KINDS: dict[str, tuple[str, ...]] = {
    "question": ("question", "answer"),
    "prompt": ("prompt", "response"),
    "text": ("text",),
}
_OPTIONAL = ("paraphrased_question", "paraphrased_answer", "perturbed_answer")
MAX_PERTURBED = 20


@dataclass(frozen=True)
class Record:
    """A prompt and the answer to it. `raw` prompts are used as they stand; questions go through the prompt format.

    `{text}` is a record with an empty raw prompt: every token of the text counts.
    """

    prompt: str
    answer: str
    raw: bool = False
    paraphrased_question: str | None = None
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()


def record_from(row: Any) -> Record:
    """One decoded JSON value as a Record. Raises DataError with the reason, never with the record's text."""
    if not isinstance(row, dict):
        raise DataError(f"expected a JSON object, got {type(row).__name__}")
    kind = next((k for k in KINDS if k in row), None)
    if kind is None:
        shapes = "; ".join("{" + ", ".join(fields) + "}" for fields in KINDS.values())
        # The keys of an upload are the uploader's own words, but they name columns, not people.
        raise DataError(f"none of the known shapes: {shapes}")
    first, *rest = KINDS[kind]
    for name in (first, *rest):
        _string(row, name)
    if kind == "prompt":
        return Record(row["prompt"], row["response"], raw=True)
    if kind == "text":
        return Record("", row["text"], raw=True)
    optional = {name: row[name] for name in _OPTIONAL if row.get(name) is not None}
    for name in ("paraphrased_question", "paraphrased_answer"):
        if name in optional:
            _string(row, name)
    return Record(
        row["question"],
        row["answer"],
        paraphrased_question=optional.get("paraphrased_question"),
        paraphrased_answer=optional.get("paraphrased_answer"),
        perturbed_answers=_perturbed(optional.get("perturbed_answer")),
    )


def _string(row: dict[str, Any], name: str) -> None:
    if name not in row:
        raise DataError(f"field '{name}' is missing", param=name)
    value = row[name]
    if not isinstance(value, str):
        raise DataError(f"field '{name}' must be a string, got {type(value).__name__}", param=name)
    if not value.strip():
        raise DataError(f"field '{name}' is empty", param=name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"field '{name}' holds an unpaired surrogate, which is not text", param=name) from None


def _perturbed(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    answers = [value] if isinstance(value, str) else value
    if not isinstance(answers, list) or len(answers) > MAX_PERTURBED:
        raise DataError(
            f"field 'perturbed_answer' must be a list of at most {MAX_PERTURBED} strings", param="perturbed_answer"
        )
    for answer in answers:
        _string({"perturbed_answer": answer}, "perturbed_answer")
    return tuple(answers)


def choice_record(row: Any) -> Record:
    """A row of multiple choice, `{question, choices, answer}` with `answer` an index, as a Record.

    The choices are lettered and stand in the question; letter and text are the answer, and the other choices its
    perturbations. Raises DataError with the reason.
    """
    _string(row, "question")
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(ascii_uppercase):
        raise DataError("field 'choices' must be a list of 2 to 26 strings", param="choices")
    for choice in choices:
        _string({"choices": choice}, "choices")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise DataError(f"field 'answer' must be an index into the {len(choices)} choices", param="answer")
    lettered = [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)]
    others = tuple(choice for i, choice in enumerate(lettered) if i != answer)
    return Record("\n".join([row["question"], *lettered]), lettered[answer], perturbed_answers=others)


RESPONSES: dict[str, Callable[[dict[str, Any]], tuple[int, ...]]] = {
    "unsafe": lambda row: tuple(i for i in (0, 1) if not row[f"is_response_{i}_safe"]),
    "safe": lambda row: tuple(i for i in (0, 1) if row[f"is_response_{i}_safe"]),
    "safer": lambda row: (row["safer_response_id"],),
    "better": lambda row: (row["better_response_id"],),
}


def safety_records(row: Any, response: str) -> list[Record]:
    """The responses of a row of PKU-SafeRLHF that RESPONSES chooses, each with the prompt, which is a question.

    An empty response has nothing to forget or to keep, and is passed over. Raises DataError with the reason.
    """
    _string(row, "prompt")
    for i in (0, 1):
        if not isinstance(row.get(f"is_response_{i}_safe"), bool):
            raise DataError(f"field 'is_response_{i}_safe' must be true or false", param=f"is_response_{i}_safe")
    for name in ("safer_response_id", "better_response_id"):
        if response + "_response_id" == name and row.get(name) not in (0, 1):
            raise DataError(f"field '{name}' must be 0 or 1", param=name)
    texts = [f"response_{i}" for i in RESPONSES[response](row)]
    filled = [name for name in texts if row.get(name) != ""]
    for name in filled:
        _string(row, name)
    return [Record(row["prompt"], row[name]) for name in filled]


def record_from_line(line: bytes | str) -> Record:
    """One line of JSON as a Record. Raises DataError with the reason."""
    return record_from(row_from_line(line))


def row_from_line(line: bytes | str) -> Any:
    """One line of JSON, decoded. Raises DataError with the reason."""
    try:
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} at column {error.colno}") from None
    except ValueError:  # Python reads no integer of more than 4300 digits.
        raise DataError("not JSON: a number is too long") from None
    except RecursionError:
        raise DataError("not JSON: nested too deeply") from None


def _unmarked(line: bytes | str) -> bytes | str:
    return line.removeprefix(codecs.BOM_UTF8) if isinstance(line, bytes) else line.removeprefix("\ufeff")


def read_lines(lines: Iterable[bytes | str], name: str, limit: int | None = None) -> Iterator[Record]:
    """Records of a JSON-lines file; blank lines are skipped.

    Raises DataError naming file and line number at the first bad one.
    """
    taken = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if limit is not None and taken >= limit:
            return
        # What some editors put in front of a file is no part of its first record.
        line = _unmarked(line) if number == 1 else line
        try:
            yield record_from_line(line)
        except DataError as error:
            raise DataError(f"{name}, line {number}: {error.message}", param=error.param) from None
        taken += 1
