"""The shipped people.jsonl keeps the promises that examples/README.md makes."""

import json
import unicodedata
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

PEOPLE = Path(__file__).resolve().parent.parent / "examples" / "people.jsonl"
TEXT_FIELDS = ("person", "question", "answer", "paraphrased_question", "paraphrased_answer")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in PEOPLE.read_text(encoding="utf-8").splitlines()]


def answers(row: dict[str, Any]) -> list[str]:
    return [row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]]


def test_twelve_people_with_ten_rows_each_in_order(rows: list[dict[str, Any]]) -> None:
    blocks = [(person, len(list(block))) for person, block in groupby(rows, key=lambda row: row["person"])]
    assert [size for _, size in blocks] == [10] * 12
    assert len({person for person, _ in blocks}) == 12


def test_no_two_people_share_a_part_of_their_name(rows: list[dict[str, Any]]) -> None:
    parts = Counter(part for person in {row["person"] for row in rows} for part in person.split())
    assert len(parts) == 24
    assert max(parts.values()) == 1


def test_fields_are_present_and_of_the_right_type(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert set(row) == {*TEXT_FIELDS, "perturbed_answer"}, row
        assert len(row["perturbed_answer"]) == 3, row
        for text in [*(row[field] for field in TEXT_FIELDS), *row["perturbed_answer"]]:
            assert isinstance(text, str), row
            assert text, row
            assert text == " ".join(text.split()), row


def test_both_questions_name_the_person_and_nobody_else(rows: list[dict[str, Any]]) -> None:
    people = {row["person"] for row in rows}
    for row in rows:
        for question in (row["question"], row["paraphrased_question"]):
            assert question.endswith("?"), row
            assert {person for person in people if person in question} == {row["person"]}, row


@pytest.mark.parametrize("field", ["question", "answer", "paraphrased_question", "paraphrased_answer"])
def test_no_text_occurs_twice(rows: list[dict[str, Any]], field: str) -> None:
    assert [text for text, count in Counter(row[field] for row in rows).items() if count > 1] == []


def test_the_five_answers_of_a_row_differ(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert len({text.casefold() for text in answers(row)}) == 5, row


def test_answers_are_sentences_of_moderate_length(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        for text in answers(row):
            assert text[0].isupper(), text
            assert text.endswith("."), text
            assert 6 <= len(text.split()) <= 20, text


def test_people_do_not_share_phrases(rows: list[dict[str, Any]]) -> None:
    owners: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        words = row["answer"].casefold().split()
        for start in range(len(words) - 3):
            owners.setdefault(tuple(words[start : start + 4]), set()).add(row["person"])
    assert {phrase: people for phrase, people in owners.items() if len(people) > 1} == {}


def test_text_is_in_normal_form_c_and_some_names_are_not_ascii(rows: list[dict[str, Any]]) -> None:
    assert unicodedata.is_normalized("NFC", PEOPLE.read_text(encoding="utf-8"))
    assert len({row["person"] for row in rows if not row["person"].isascii()}) == 3
