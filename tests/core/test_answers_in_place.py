"""Forget sets with another answer in place of each true one: whose, how drawn, and what is refused."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from core.data.refusals import alternatives, refused, relabelled
from core.errors import DataError
from core.spec.records import Record
from core.tokens import Encoder, Example

ASKED = [Record(f"Who is {n}?", f"{n} is here.", perturbed_answers=(f"{n} left.", "Nobody.")) for n in "ABCDEFGH"]
OTHERS = [Record(f"What is {n}?", f"It is {n}.") for n in range(5)]
Made = Callable[[Sequence[Record], Encoder, int], tuple[Example, ...]]
WAYS: dict[str, Made] = {
    "refused": lambda records, encoder, seed: refused(records, ["No.", "Pass."], encoder, seed),
    "relabelled": lambda records, encoder, seed: relabelled(records, OTHERS, encoder, seed),
    "alternatives": alternatives,
}
ANSWERS = {
    "refused": {"No.", "Pass."},
    "relabelled": {record.answer for record in OTHERS},
    "alternatives": {answer for record in ASKED for answer in record.perturbed_answers},
}


@pytest.fixture
def encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer, "plain", 200)


def answers(encoder: Encoder, examples: Sequence[Example]) -> list[str]:
    return [encoder.tokenizer.decode(e.ids[e.start : -1]).strip() for e in examples]


@pytest.mark.parametrize("way", WAYS)
def test_each_prompt_keeps_its_place_and_gets_an_answer_that_is_not_its_own(way: str, encoder: Encoder) -> None:
    made = WAYS[way](ASKED, encoder, 0)
    assert [e.prompt for e in made] == [tuple(encoder.prompt_ids(record)) for record in ASKED]
    found = answers(encoder, made)
    assert set(found) <= ANSWERS[way]
    assert len(set(found)) > 1
    assert not set(found) & {record.answer for record in ASKED}


@pytest.mark.parametrize("way", WAYS)
def test_the_seed_alone_decides(way: str, encoder: Encoder) -> None:
    assert WAYS[way](ASKED, encoder, 3) == WAYS[way](ASKED, encoder, 3)
    assert WAYS[way](ASKED, encoder, 3) != WAYS[way](ASKED, encoder, 4)


@pytest.mark.parametrize("way", WAYS)
def test_what_asks_nothing_is_refused(way: str, encoder: Encoder) -> None:
    text = Record("", "Some text.", raw=True, perturbed_answers=("Other text.",))
    with pytest.raises(DataError, match=r"1 \{text\} records of the forget set have none") as caught:
        WAYS[way]([*ASKED, text], encoder, 0)
    assert caught.value.param == "method.name"


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_cannot_fit_is_told(way: str, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"8 of 8 .* do not fit into data\.max_length = 2 tokens"):
        WAYS[way](ASKED, Encoder(tokenizer, "plain", 2), 0)


def test_an_alternative_is_the_records_own(encoder: Encoder) -> None:
    for record, answer in zip(ASKED, answers(encoder, alternatives(ASKED, encoder, 1)), strict=True):
        assert answer in record.perturbed_answers


def test_a_record_without_an_alternative_is_refused_with_what_else_there_is(encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"1 of 9 have none\. Allowed without it: refusal\.") as caught:
        alternatives([*ASKED, OTHERS[0]], encoder, 0)
    assert caught.value.param == "method.alternative"


def test_a_raw_answers_space_is_kept(encoder: Encoder) -> None:
    raw = [Record("Once upon a", " time.", raw=True), Record("Once upon a ", "time.", raw=True)]
    spaced, bare = relabelled(raw, [Record("x", " tree.", raw=True)], encoder, 0)
    assert encoder.tokenizer.decode(spaced.ids[spaced.start : -1]) == " tree."
    assert encoder.tokenizer.decode(bare.ids[bare.start : -1]) == "tree."
