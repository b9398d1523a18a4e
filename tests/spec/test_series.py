"""A series: a request for each set, what is wrong with any of them by its place, and what only a series cannot ask."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import SpecError
from core.spec.job import parse as parse_request
from core.spec.models import LocalModel
from core.spec.series import SeriesSpec, parse

SETS = [{"source": "muse", "config": "sust", "split": f"forget_{i}", "path": "news"} for i in (1, 2, 3, 4)]
RETAIN = {"source": "muse", "split": "retain1", "path": "news"}
GOOD: dict[str, Any] = {
    "series": "sustainability",
    "model": "models/news",
    "data": {"forget": SETS, "retain": RETAIN},
    "method": "NPO",
    "profile": "copyright",
    "training": {"adapter": "lora"},
}


def with_data(**data: Any) -> dict[str, Any]:
    return GOOD | {"data": GOOD["data"] | data}


def problems(data: Any) -> list[tuple[str, Any, str]]:
    with pytest.raises(SpecError) as caught:
        parse(data)
    return [(problem.param, problem.value, problem.message) for problem in caught.value.problems]


@pytest.mark.parametrize("kind", ["scalability", "sustainability"])
def test_each_set_is_a_request_of_its_own(kind: str) -> None:
    spec = parse(GOOD | {"series": kind})
    rest = {key: value for key, value in GOOD.items() if key != "series"}
    assert spec.kind == kind
    assert list(spec.requests) == [parse_request(rest | {"data": GOOD["data"] | {"forget": one}}) for one in SETS]


def test_each_request_begins_where_the_one_before_it_ended_or_at_the_model_as_given() -> None:
    before = Path("out/run-1/model")
    chained, grown = parse(GOOD), parse(GOOD | {"series": "scalability"})
    given = LocalModel(path="models/news")
    assert [chained.request(i, before).model for i in (0, 1)] == [given, LocalModel(path="out/run-1/model")]
    assert [grown.request(i, before).model for i in (0, 1)] == [given, given]
    assert chained.request(1, before) == parse_request(chained.request(1, before).model_dump(mode="json"))


def test_the_digest_is_of_kind_sets_and_request() -> None:
    digests = {parse(GOOD | change).digest() for change in ({}, {"seed": 1}, {"series": "scalability"})}
    digests |= {parse(with_data(forget=forget)).digest() for forget in (SETS[:2], SETS[::-1])}
    assert len(digests) == 5
    assert parse(GOOD | {"method": {"name": "npo", "retain": "nll"}}).digest() == parse(GOOD).digest()


def test_growing_sets_may_be_one_source_in_growing_numbers_of_rows() -> None:
    rows = [SETS[0] | {"rows": rows} for rows in (10, 20)]
    assert len(parse(with_data(forget=rows) | {"series": "scalability"}).requests) == 2
    ((param, value, said),) = problems(with_data(forget=rows))
    assert (param, value) == ("data.forget.1", rows[1])
    assert said == "This is the set of data.forget.0 once more. Allowed: each set once."


KINDS = "Allowed: scalability, sustainability."


@pytest.mark.parametrize(
    ("data", "param", "value", "message"),
    [
        (None, "", None, "JSON object (got null)"),
        ([], "", [], "JSON object (got [])"),
        (GOOD | {"series": None}, "series", None, f"This field is required. {KINDS}"),
        (GOOD | {"series": "sustain"}, "series", "sustain", f"Did you mean 'sustainability'? {KINDS}"),
        (GOOD | {"series": ["sust"]}, "series", ["sust"], KINDS),
        (GOOD | {"data": 3}, "data", 3, "JSON object (got 3)"),
        (with_data(forget=SETS[0]), "data.forget", SETS[0], "a list of 2 to 100 sources (got {"),
        (with_data(forget=[]), "data.forget", [], "a list of 2 to 100 sources (got [])"),
        (with_data(forget=SETS[:1]), "data.forget", SETS[:1], "a list of 2 to 100 sources"),
        (with_data(forget=None), "data.forget", None, "a list of 2 to 100 sources (got null)"),
        (with_data(forget=[SETS[0], "x"]), "data.forget.1", "x", 'JSON object (got "x")'),
        (with_data(forget=[SETS[0], {"source": "muse"}]), "data.forget.1.split", None, "required"),
        (with_data(forget=[SETS[0], {}]), "data.forget.1.source", None, "required. Allowed: copyright, jsonl"),
        (with_data(forget=[SETS[0], SETS[1], SETS[0]]), "data.forget.2", SETS[0], "the set of data.forget.0 once more"),
        (with_data(retain=SETS[2]), "data.retain", SETS[2], "retain is the very set to forget."),
        (GOOD | {"seed": -1}, "seed", -1, "greater than or equal to 0"),
        (GOOD | {"sede": 1}, "sede", 1, "Unknown field 'sede'. Did you mean 'seed'?"),
        (
            GOOD | {"profile": "copyleft"},
            "profile",
            "copyleft",
            "Did you mean 'copyright'?",
        ),
        (
            GOOD | {"evaluation": {"retrained": {"rows": "rows"}}},
            "evaluation.retrained.rows",
            "rows",
            "Allowed: evaluation.retrained.model.",
        ),
        (
            GOOD | {"training": {"adapter": {"deliver": "adapter"}}},
            "training.adapter.deliver",
            "adapter",
            "needs a complete model to begin at. Allowed in a series 'sustainability': 'merged'.",
        ),
    ],
)
def test_what_is_wrong_is_told_once_with_its_place(data: Any, param: str, value: Any, message: str) -> None:
    ((found, at, said),) = problems(data)
    assert (found, at) == (param, value)
    assert message in said


def test_every_fault_is_found_at_once() -> None:
    sets = [{"source": "muse", "path": "p"}, SETS[1], {"source": "dream"}]
    found = [param for param, _, _ in problems(with_data(forget=sets) | {"series": "x", "seed": -1})]
    assert found == ["series", "data.forget.0.split", "seed", "data.forget.2.source"]


def test_adapters_alone_may_be_delivered_by_runs_that_all_begin_at_the_same_model() -> None:
    spec = parse(GOOD | {"series": "scalability", "training": {"adapter": {"deliver": "adapter"}}})
    assert isinstance(spec, SeriesSpec)
    assert all(asked.training.adapter and asked.training.adapter.deliver == "adapter" for asked in spec.requests)
