"""`lethe evaluate` in this process: its exit code, its events, and the sets and models that tests measure."""

import contextlib
import io
import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from core.evaluate import main
from core.model import load, save
from core.report.schema import Absent, Evaluated, Measured, Measurement
from tests import models, tiny
from tests.core.recording import QUICK

Event = dict[str, Any]
# One thread, as all tests; and short answers.
SPEC: dict[str, Any] = {"threads": 1, "evaluation": QUICK | {"plots": False}}


class _Said(io.StringIO):
    """What is printed; at the first line that holds `until`, Ctrl-C is pressed."""

    def __init__(self, until: str | None) -> None:
        super().__init__()
        self._until = until

    def write(self, text: str) -> int:
        if self._until is not None and self._until in text:
            self._until = None
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def evaluate(*arguments: object, until: str | None = None) -> tuple[Any, list[Event]]:
    """Exit code and events, which every line that it prints must be; Ctrl-C comes at the first with `until` in it."""
    said, before = _Said(until), {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return left.value.code, [json.loads(line) for line in said.getvalue().splitlines()]


def report_of(out: Path, *arguments: object) -> Evaluated:
    """The report of an evaluation that must succeed."""
    code, events = evaluate(*arguments, "--out", out)
    assert (code, events[-1]["event"]) == (0, "done"), events[-1]
    return Evaluated.model_validate_json((out / "report.json").read_bytes())


def refused(*arguments: object) -> tuple[Any, Event]:
    """Exit code and error of one that must not succeed, and must not end in an error of Lethe's own."""
    code, events = evaluate(*arguments)
    assert events[-1]["event"] == "error"
    assert code != 70
    return code, events[-1]


def request(file: Path, **fields: Any) -> Path:
    """A file for `--spec`."""
    file.write_text(json.dumps(SPEC | fields))
    return file


def sets(reciter: models.Reciter, folder: Path) -> list[str]:
    """The options that name forget, retain and holdout."""
    holdout = models.write_lines(folder / "holdout.jsonl", models.people(2, first=4)[:6])
    named = {"forget": reciter.forget, "retain": reciter.retain, "holdout": holdout}
    return [word for name, file in named.items() for word in (f"--{name}", str(file))]


def changed(folder: Path, into: Path, change: Callable[[Any], None] = lambda model: tiny.nudge(model)) -> Path:
    """A copy of the model whose weights were changed."""
    model, tokenizer = load(folder, torch.device("cpu"))
    change(model)
    save(model, tokenizer, into)
    return into


def value(report: Evaluated, name: str, when: str = "after") -> float:
    """What was measured."""
    found = getattr(report, when)[name]
    assert isinstance(found, Measured), found
    return found.value


def why(report: Evaluated, name: str, when: str = "after") -> str:
    """Why it was not."""
    found = getattr(report, when)[name]
    assert isinstance(found, Absent), found
    return found.absent


def same(one: Mapping[str, Measurement], other: Mapping[str, Measurement]) -> bool:
    """Whether the same metrics are there with the same values; what is absent may be for another reason."""
    return one.keys() == other.keys() and all(
        found == other[name] or (isinstance(found, Absent) and isinstance(other[name], Absent))
        for name, found in one.items()
    )
