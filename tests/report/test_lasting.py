"""What earlier jobs removed has come back where a gate of theirs that held then fails now, and only there."""

from typing import Any

import pytest

from core.report.lasting import Lasting, came_back
from core.report.schema import Absent, EarlierRemoval, Measured, Measurement, Verdict
from core.spec.job import parse

PASSED = Verdict(verdict="passed", reasons=["all hold"], gates=[])


def gates(*given: dict[str, Any]) -> Any:
    data = {"forget": {"source": "jsonl", "path": "f"}, "retain": {"source": "jsonl", "path": "r"}}
    return parse({"model": "m", "data": data, "method": "GA", "gates": list(given)}).gates


def values(**given: float) -> dict[str, Measurement]:
    return {f"forget.{name}": Measured(value=value, rows=4, low=value, high=value) for name, value in given.items()}


GATE = {"metric": "forget.probability", "at_most": 0.1}


@pytest.mark.parametrize(
    ("given", "then", "now", "expected"),
    [
        ([GATE], 0.05, 0.06, False),
        ([GATE], 0.05, 0.2, True),
        ([GATE], 0.3, 0.4, "held then"),
        ([{"metric": "retain.probability", "at_least": 0.5}], 0.05, 0.9, "held then"),
        ([GATE], 0.05, None, "could not be measured"),
        # To what the model knew before that job, 0.8.
        ([{"metric": "forget.probability", "at_most": 0.5, "relative_to": "before"}], 0.1, 0.39, False),
        ([{"metric": "forget.probability", "at_most": 0.5, "relative_to": "before"}], 0.1, 0.41, True),
    ],
)
def test_a_gate_that_held_then_is_asked_again(
    given: list[dict[str, Any]], then: float, now: float | None, expected: Any
) -> None:
    measured: dict[str, Measurement] = (
        {"forget.probability": Absent(absent="no row")} if now is None else values(probability=now)
    )
    back, reasons = came_back(gates(*given), values(probability=0.8), values(probability=then), measured)
    if isinstance(expected, str):
        assert isinstance(back, Absent)
        assert expected in back.absent
    else:
        assert back is expected
    assert bool(reasons) == (back is True)


def test_one_gate_that_fails_is_enough_whatever_the_others_say() -> None:
    other = {"metric": "forget.rouge_l", "at_most": 0.5}
    then = values(probability=0.05, rouge_l=0.1)
    now: dict[str, Measurement] = {**values(probability=0.2), "forget.rouge_l": Absent(absent="no row")}
    assert came_back(gates(GATE, other), {}, then, now)[0] is True


def removal(job: str, back: bool | Absent) -> EarlierRemoval:
    reasons = ["forget.probability at most 0.1 fails"] if back is True else []
    return EarlierRemoval(job=job, commitment="0" * 64, rows=4, then={}, now={}, came_back=back, reasons=reasons)


def test_what_came_back_keeps_a_verdict_from_being_passed_and_names_the_job() -> None:
    assert Lasting([removal("job_a", False), removal("job_b", Absent(absent="x"))], 2).applied(PASSED) == PASSED
    back = Lasting([removal("job_a", True), removal("job_b", False)], 2)
    (reason,) = back.applied(PASSED).reasons
    assert (back.applied(PASSED).verdict, "job_a" in reason, "job_b" in reason) == ("not_passed", True, False)
    failed = Verdict(verdict="not_passed", reasons=["own gate"], gates=[])
    assert [text[:3] for text in back.applied(failed).reasons] == ["own", "Wha"]
    open_question = Verdict(verdict="inconclusive", reasons=["none"], gates=[])
    assert back.applied(open_question).verdict == "not_passed"


def test_limitations_say_how_much_was_not_looked_at() -> None:
    assert Lasting([removal("job_a", False)], 1).limitations == []
    cut, unknown = Lasting([removal("job_a", Absent(absent="destroyed"))], 9).limitations
    assert "Of 9 earlier jobs" in cut
    assert "Of 1 earlier jobs" in unknown
