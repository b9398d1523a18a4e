from typing import Any

import pytest

from core.errors import DataError
from core.spec.records import choice_record, record_from_line, safety_records

CHOICE = {"question": "Which?", "choices": ["One", "Two"], "answer": 1}
SAFETY = {
    "prompt": "How?",
    "response_0": "Like so.",
    "response_1": "Not at all.",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "better_response_id": 0,
    "safer_response_id": 1,
}


def test_a_number_too_long_to_read_is_a_reason_not_a_traceback() -> None:
    with pytest.raises(DataError, match="a number is too long"):
        record_from_line('{"text": ' + "1" * 5000 + "}")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"answer": 2}, "answer"),
        ({"answer": -1}, "answer"),
        ({"answer": True}, "answer"),
        ({"answer": "B"}, "answer"),
        ({"choices": "One"}, "choices"),
        ({"choices": ["One"]}, "choices"),
        ({"choices": ["One", ""]}, "choices"),
        ({"choices": ["x"] * 27}, "choices"),
        ({"question": None}, "question"),
    ],
)
def test_a_row_of_choices_that_is_none_names_its_column(change: dict[str, Any], param: str) -> None:
    assert choice_record(CHOICE).answer == "B. Two"
    with pytest.raises(DataError) as caught:
        choice_record(CHOICE | change)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("response", "change", "answers"),
    [
        ("unsafe", {}, ["Like so."]),
        ("unsafe", {"is_response_1_safe": False}, ["Like so.", "Not at all."]),
        ("unsafe", {"is_response_0_safe": True}, []),
        ("unsafe", {"response_0": ""}, []),
        ("safe", {}, ["Not at all."]),
        ("safer", {}, ["Not at all."]),
        ("better", {}, ["Like so."]),
    ],
)
def test_a_response_is_chosen_by_its_labels(response: str, change: dict[str, Any], answers: list[str]) -> None:
    records = safety_records(SAFETY | change, response)
    assert [(record.prompt, record.answer, record.raw) for record in records] == [("How?", a, False) for a in answers]


@pytest.mark.parametrize(
    ("response", "change", "param"),
    [
        ("unsafe", {"is_response_1_safe": 1}, "is_response_1_safe"),
        ("unsafe", {"response_0": None}, "response_0"),
        ("safer", {"safer_response_id": 2}, "safer_response_id"),
        ("better", {"better_response_id": None}, "better_response_id"),
        ("safe", {"prompt": ""}, "prompt"),
    ],
)
def test_a_label_that_is_none_names_its_column(response: str, change: dict[str, Any], param: str) -> None:
    with pytest.raises(DataError) as caught:
        safety_records(SAFETY | change, response)
    assert caught.value.param == param
