"""A run measures again what earlier jobs removed, on the model that it delivers, and says so where it has come back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from core.data import Inputs
from core.earlier import lasting
from core.evaluation.earlier import of_set
from core.report.schema import Absent, Measured, Report
from core.run import run
from core.spec.job import JobSpec, parse
from tests.core.recording import QUICK, Recorder
from tests.models import Reciter, people, write_lines

GATE = {"metric": "forget.probability", "relative_to": "before", "at_most": 1.0}
KEPT = {"metric": "retain.probability", "at_least": 0.0}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, rows = tmp_path_factory.mktemp("sets"), people(2)
    return {
        "ds_first000": write_lines(folder / "first.jsonl", rows[:3]),
        "ds_second00": write_lines(folder / "second.jsonl", rows[5:8]),
    }


def carried_out(spec: dict[str, Any], out: Path, sets: dict[str, Path], earlier: Path | None = None) -> Report:
    heard = Recorder()
    out.mkdir()
    inputs = Inputs(datasets=sets, earlier=earlier)
    report = run(parse({"evaluation": QUICK | {"plots": False}, **spec}), inputs, out, emit=heard, stop=heard.stop)
    return report.report


def asked(unlearnt: Reciter, forget: str, **fields: Any) -> dict[str, Any]:
    spec = unlearnt.spec(training={"steps": 2, "batch_size": 2}, optimizer={"name": "adamw", "lr": 1e-2}, **fields)
    return spec | {"data": spec["data"] | {"forget": {"source": "upload", "dataset": forget}}}


def listed(folder: Path, jobs: list[dict[str, Any]], of: int) -> Path:
    file = folder / "earlier.json"
    file.write_text(json.dumps({"jobs": jobs, "of": of}))
    return file


@pytest.fixture(scope="module")
def first(unlearnt: Reciter, sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an earlier job's run."""
    out = tmp_path_factory.mktemp("first") / "out"
    carried_out(asked(unlearnt, "ds_first000", gates=[GATE, KEPT]), out, sets)
    return out


def entry(first: Path, sets: dict[str, Path], **changes: Any) -> dict[str, Any]:
    known = {
        "job": "job_first",
        "report": str(first / "report.json"),
        "dataset": "ds_first000",
        "records": str(sets["ds_first000"]),
        "absent": None,
    }
    return known | changes


def test_earlier_sets_are_measured_on_the_model_delivered(
    unlearnt: Reciter, sets: dict[str, Path], first: Path, tmp_path: Path
) -> None:
    jobs = [
        entry(first, sets),
        entry(first, sets, job="job_gone", absent="its data was destroyed on 2026-01-31"),
        entry(first, sets, job="job_lost", report=str(tmp_path / "nowhere.json")),
        entry(first, sets, job="job_bad", records=str(tmp_path / "nowhere.jsonl")),
    ]
    own = {"metric": "forget.probability", "at_most": 0.5}
    spec = asked(unlearnt, "ds_second00", gates=[own]) | {"model": str(first / "model")}
    report = carried_out(spec, tmp_path / "out", sets, listed(tmp_path, jobs, 30))
    assert Report.model_validate_json((tmp_path / "out" / "report.json").read_text()) == report
    then = Report.model_validate_json((first / "report.json").read_text())
    assert not isinstance(report.earlier, Absent)
    again, gone, lost, bad = report.earlier
    assert (again.job, again.rows, again.commitment) == ("job_first", 3, then.forget.commitment)
    assert again.then == {name: metric for name, metric in then.after.items() if name.startswith("forget.")}
    assert not isinstance(again.now, Absent)
    # What a run would find before it: the same rows, the same model.
    fresh = asked(unlearnt, "ds_first000") | {"model": str(tmp_path / "out" / "model"), "method": "origin"}
    found = carried_out(fresh, tmp_path / "fresh", sets).before
    assert again.now == {name: metric for name, metric in found.items() if name.startswith("forget.")}
    assert again.came_back is False
    assert isinstance(gone.now, Absent)
    assert (gone.now.absent, gone.rows, gone.then) == ("its data was destroyed on 2026-01-31", 3, again.then)
    assert (gone.came_back, lost.rows) == (gone.now, lost.came_back)
    assert isinstance(bad.now, Absent)
    assert "cannot be read" in bad.now.absent
    assert any("Of 30 earlier jobs" in text for text in report.limitations)
    assert report.verdict.verdict == "passed"


def test_what_comes_back_keeps_the_verdict_from_being_passed(
    unlearnt: Reciter, sets: dict[str, Path], first: Path, tmp_path: Path
) -> None:
    """The set to keep holds the first set word for word, so the second job teaches it anew."""
    kept = write_lines(tmp_path / "kept.jsonl", people(2)[:3])
    spec = asked(unlearnt, "ds_second00", method="FT", gates=[KEPT, {"metric": "forget.probability", "at_most": 1}])
    spec["data"]["retain"] = {"source": "jsonl", "path": str(kept)}
    spec |= {"model": str(first / "model"), "training": {"steps": 12, "batch_size": 2, "adapter": "lora"}}
    report = carried_out(spec, tmp_path / "out", sets, listed(tmp_path, [entry(first, sets)], 1))
    assert not isinstance(report.earlier, Absent)
    (earlier,) = report.earlier
    assert earlier.came_back is True
    assert isinstance(earlier.now, dict)
    assert isinstance(earlier.then, dict)
    now, then = earlier.now["forget.probability"], earlier.then["forget.probability"]
    assert isinstance(now, Measured)
    assert isinstance(then, Measured)
    assert now.value > then.value
    assert all(gate.outcome == "held" for gate in report.verdict.gates)
    assert report.verdict.verdict == "not_passed"
    assert "job_first" in report.verdict.reasons[0]


def test_what_does_not_fit_into_memory_is_unknown_and_costs_the_run_nothing(
    unlearnt: Reciter, sets: dict[str, Path], first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first set asks for more at once than this run does, and fails all the same; the second one fits."""
    tried: list[int] = []

    def tight(spec: JobSpec, *rest: Any, **more: Any) -> Any:
        tried.append(spec.evaluation.batch_tokens)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("of the device")
        return of_set(spec, *rest, **more)

    monkeypatch.setattr("core.earlier.of_set", tight)
    spec = asked(unlearnt, "ds_second00", evaluation=QUICK | {"plots": False, "batch_tokens": 512})
    spec |= {"model": str(first / "model")}
    jobs = [entry(first, sets), entry(first, sets, job="job_again")]
    report = carried_out(spec, tmp_path / "out", sets, listed(tmp_path, jobs, 2))
    assert not isinstance(report.earlier, Absent)
    missed, found = report.earlier
    assert isinstance(missed.now, Absent)
    assert missed.now.absent.startswith("out of memory: ")
    assert (isinstance(found.now, dict), tried) == (True, [512, 512])


def test_without_a_service_nothing_is_known_of_earlier_jobs(first: Path) -> None:
    report = Report.model_validate_json((first / "report.json").read_text())
    assert isinstance(report.earlier, Absent)
    assert lasting(None, None) is None  # type: ignore[arg-type]
