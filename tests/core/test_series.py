"""Series: each request begins where it should, a stop costs nothing, and what went before is measured again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from core.data import Inputs
from core.errors import CheckpointError, DataError, ModelError, SpecError, Stopped
from core.report.digest import file_digests, model_digest
from core.report.schema import Absent, Measured, Report
from core.report.series import Series
from core.series import main, series
from core.spec.series import parse
from tests.core.recording import QUICK, Recorder, carry_out
from tests.models import Reciter, people, write_lines
from tests.zygote import Zygote

PLAIN = QUICK | {"plots": False, "membership": [], "embedder": "nowhere"}
STEPS = 2


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three sets of rows to forget, none of which has a row of another; each row has wrong answers too."""
    folder, rows = tmp_path_factory.mktemp("forget"), people(2)
    rows = [row | {"perturbed_answer": ["In a lighthouse.", "She never did."]} for row in rows]
    return [write_lines(folder / f"{i}.jsonl", rows[2 * i : 2 * i + 2]) for i in range(3)]


def wanted(unlearnt: Reciter, sets: list[Any], kind: str = "sustainability", **fields: Any) -> dict[str, Any]:
    given = unlearnt.spec(
        training={"steps": STEPS, "batch_size": 2}, optimizer={"name": "adamw", "lr": 1e-2}, evaluation=PLAIN
    )
    forget = [one if isinstance(one, dict) else {"source": "jsonl", "path": str(one)} for one in sets]
    return given | {"series": kind, "data": given["data"] | {"forget": forget}} | fields


def done(spec: dict[str, Any], out: Path, heard: Recorder | None = None) -> Series:
    heard = heard or Recorder()
    return series(parse(spec), Inputs(), out, emit=heard, stop=heard.stop)


def digest(folder: Path) -> str:
    return model_digest(file_digests(folder))


def value(metrics: Any, name: str) -> float:
    found = metrics[name]
    assert isinstance(found, Measured)
    return found.value


@pytest.fixture(scope="module")
def lasting(unlearnt: Reciter, sets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Series]:
    """An undisturbed series of three requests, one after another."""
    out = tmp_path_factory.mktemp("lasting")
    return out, done(wanted(unlearnt, sets), out)


def test_each_request_begins_at_the_model_that_the_one_before_it_delivered(
    lasting: tuple[Path, Series], unlearnt: Reciter
) -> None:
    out, result = lasting
    assert result.finished
    assert Series.model_validate_json((out / "series.json").read_text()) == result
    begins = digest(unlearnt.model)
    for i, request in enumerate(result.requests, 1):
        report = Report.model_validate_json((out / request.folder / "report.json").read_text())
        assert (request.request, request.folder, request.rows) == (i, f"run-{i}", 2)
        assert request.input_model == report.input_model == begins
        assert request.output_model == digest(out / f"run-{i}" / "model") != begins
        assert (request.before, request.after) == (report.before, report.after)
        assert (request.verdict, request.spec_digest) == (report.verdict, report.spec_digest)
        assert (request.steps, request.seconds) == (STEPS, report.training.seconds)
        assert [earlier.request for earlier in request.earlier] == list(range(1, i))
        begins = request.output_model


def test_an_earlier_set_is_measured_as_a_run_on_it_would_find_it(
    lasting: tuple[Path, Series], unlearnt: Reciter, sets: list[Path], tmp_path: Path
) -> None:
    out, result = lasting
    for i, earlier in enumerate(result.requests[2].earlier):
        forget = {"source": "jsonl", "path": str(sets[i])}
        asked = unlearnt.spec(method="origin", model=str(out / "run-3" / "model"), evaluation=PLAIN)
        report = carry_out(asked | {"data": asked["data"] | {"forget": forget}}, tmp_path / str(i)).report
        found = {name: metric for name, metric in report.before.items() if name.startswith("forget.")}
        assert found == earlier.metrics
        assert {"forget.probability", "forget.rouge_l", "forget.extraction_strength"} <= found.keys()
        absent = found["forget.embedding_accuracy"]
        assert isinstance(absent, Absent)
        assert "there is no folder" in absent.absent
    # It is another number than right after the request, and than that of another set.
    first = value(result.requests[0].after, "forget.probability")
    later = [value(request.earlier[0].metrics, "forget.probability") for request in result.requests[1:]]
    assert len({first, *later, value(result.requests[2].earlier[1].metrics, "forget.probability")}) == 4


def test_what_comes_back_is_not_passed(unlearnt: Reciter, sets: list[Path], tmp_path: Path) -> None:
    """The set to keep holds the first set word for word, so the second request teaches it anew."""
    kept = write_lines(tmp_path / "kept.jsonl", [json.loads(line) for line in sets[0].read_text().splitlines()])
    gate = {"metric": "forget.probability", "relative_to": "before", "at_most": 1.0}
    spec = wanted(unlearnt, sets[:2], method="FT", gates=[gate, {"metric": "retain.probability", "at_least": 0}])
    spec["data"]["retain"] = {"source": "jsonl", "path": str(kept)}
    result = done(spec | {"training": {"steps": 10, "batch_size": 2, "adapter": "lora"}}, tmp_path / "out")
    before, after = (
        value(metrics, "forget.probability") for metrics in (result.requests[0].before, result.requests[0].after)
    )
    (earlier,) = result.requests[1].earlier
    again = value(earlier.metrics, "forget.probability")
    assert again > after > before
    # The gate on what is kept is no part of it, and the ratio is to what the model knew before the first request.
    (judged,) = earlier.verdict.gates
    assert (earlier.verdict.verdict, judged.outcome) == ("not_passed", "failed")
    assert judged.observed == pytest.approx(again / before)


def test_under_a_guard_earlier_sets_are_asked_under_its_prompt_too(
    unlearnt: Reciter, sets: list[Path], tmp_path: Path
) -> None:
    result = done(wanted(unlearnt, sets[:2], method="guard", evaluation=PLAIN | {"plots": True}), tmp_path)
    first, second = result.requests
    (earlier,) = second.earlier
    assert first.output_model == second.output_model
    assert value(earlier.metrics, "forget.probability") == value(first.after, "forget.probability")
    assert value(first.after, "forget.probability") != value(first.before, "forget.probability")
    drawn = (tmp_path / "series.svg").read_text()
    assert "Metrics by request." in drawn
    assert "forget.probability of request 1" in drawn


def test_interrupted_anywhere_it_ends_the_same(
    lasting: tuple[Path, Series], unlearnt: Reciter, sets: list[Path], tmp_path: Path
) -> None:
    spec, whole, requests = wanted(unlearnt, sets), lasting[1], 0

    def in_the_second(event: dict[str, Any]) -> bool:
        nonlocal requests
        requests += event["event"] == "request"
        return requests == 2 and event["event"] == "step"

    with pytest.raises(Stopped):
        done(spec, tmp_path, Recorder(in_the_second))
    first = written(tmp_path, 1)
    so_far = Series.model_validate_json((tmp_path / "series.json").read_text())
    assert ([request.request for request in so_far.requests], so_far.finished) == ([1], False)

    # Stopped again while the first set is measured after the second request, which is then not run a third time.
    heard = Recorder(lambda event: event.get("phase") == "score_earlier")
    with pytest.raises(Stopped):
        done(spec, tmp_path, heard)
    assert [event["resumed_from"] for event in heard.of("accepted")] == [1]
    second = written(tmp_path, 2)

    heard = Recorder()
    result = done(spec, tmp_path, heard)
    assert [event["request"] for event in heard.of("request")] == [3]
    assert [(event["request"], event["of"]) for event in heard.of("earlier")] == [(2, 1), (3, 1), (3, 2)]
    assert (written(tmp_path, 1), written(tmp_path, 2)) == (first, second)
    assert [request.earlier for request in result.requests] == [request.earlier for request in whole.requests]
    assert [request.output_model for request in result.requests] == [request.output_model for request in whole.requests]
    assert result.finished


def written(out: Path, request: int) -> tuple[int, int]:
    """Which file a request's report is, and when it was written."""
    found = (out / f"run-{request}" / "report.json").stat()
    return found.st_ino, found.st_mtime_ns


def test_a_finished_series_is_not_done_again(lasting: tuple[Path, Series], unlearnt: Reciter, sets: list[Path]) -> None:
    out, result = lasting
    result_file = (out / "series.json").stat()
    heard = Recorder()
    assert done(wanted(unlearnt, sets), out, heard) == result
    (said,) = heard.events
    assert (said["event"], said["finished_before"], said["series"]) == ("done", True, str(out / "series.json"))
    assert said["verdicts"] == ["inconclusive"] * 3
    assert (out / "series.json").stat().st_mtime_ns == result_file.st_mtime_ns
    assert not (out / "series.svg").exists()


def test_growing_sets_are_each_forgotten_by_the_model_as_given(unlearnt: Reciter, tmp_path: Path) -> None:
    rows = [{"source": "jsonl", "path": str(unlearnt.forget), "rows": rows} for rows in (2, 4, 6)]
    spec = wanted(unlearnt, rows, "scalability")
    result = done(spec, tmp_path)
    assert {request.input_model for request in result.requests} == {digest(unlearnt.model)}
    assert len({request.output_model for request in result.requests}) == 3
    assert [(request.rows, request.earlier) for request in result.requests] == [(2, []), (4, []), (6, [])]
    # The largest is the run that its request alone would be.
    alone = carry_out(
        {key: spec[key] for key in spec if key != "series"} | {"data": spec["data"] | {"forget": rows[2]}},
        tmp_path / "alone",
    )
    assert alone.report.output_model == result.requests[2].output_model


@pytest.mark.parametrize(
    ("spoil", "param", "said"),
    [
        (lambda r, _: [r[0] | {"rows": 4}, r[0] | {"rows": 6}, r[1]], "data.forget.2", "2 records to forget, where"),
        (lambda r, f: [r[0], {"source": "jsonl", "path": str(f / "none.jsonl")}], None, "none.jsonl cannot be read"),
        (
            lambda r, f: [r[0], {"source": "muse", "path": str(f), "split": "forget_2"}],
            "data.forget.1.config",
            "data.forget.1",
        ),
    ],
    ids=["not growing", "no file", "no split"],
)
def test_a_set_that_cannot_be_used_is_told_before_anything_runs(
    spoil: Any, param: str | None, said: str, unlearnt: Reciter, sets: list[Path], tmp_path: Path
) -> None:
    files = [{"source": "jsonl", "path": str(file)} for file in (unlearnt.forget, sets[0])]
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match=said) as caught:
        done(wanted(unlearnt, spoil(files, tmp_path), "scalability"), out)
    assert param is None or caught.value.param == param
    assert list(out.iterdir()) == []


def test_a_folder_of_another_series_is_refused(
    lasting: tuple[Path, Series], unlearnt: Reciter, sets: list[Path], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(lasting[0], tmp_path / "copy"))
    with pytest.raises(CheckpointError, match="the result of another series"):
        done(wanted(unlearnt, sets, seed=1), out)
    (out / "series.json").unlink()
    with pytest.raises(CheckpointError, match=r"run-1 holds the report of another spec"):
        done(wanted(unlearnt, sets, seed=1), out)


def test_a_request_whose_beginning_has_changed_is_refused(unlearnt: Reciter, sets: list[Path], tmp_path: Path) -> None:
    spec = wanted(unlearnt, sets[:2])
    done(spec, tmp_path)
    report = tmp_path / "run-1" / "report.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | {"output_model": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"run-2 began at another model .* than was delivered before it \(0000"):
        done(spec, tmp_path)
    shutil.rmtree(tmp_path / "run-2")
    with pytest.raises(ModelError, match="its digest is"):
        done(spec, tmp_path)


def test_several_processes_may_not_each_start_it(
    unlearnt: Reciter, sets: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match="started as one process") as caught:
        done(wanted(unlearnt, sets), tmp_path)
    assert caught.value.problems[0].value == 2


def test_ctrl_c_ends_the_command_as_it_ends_a_run(
    unlearnt: Reciter, sets: list[Path], zygote: Zygote, tmp_path: Path
) -> None:
    file, out, said = tmp_path / "spec.json", tmp_path / "out", tmp_path / "stdout"
    file.write_text(json.dumps(wanted(unlearnt, sets[:2], training={"steps": 4000, "batch_size": 2})))
    with said.open("wb") as stdout, Path(os.devnull).open("r+b") as nothing:
        arguments = (str(file), "--out", str(out))
        process = zygote.start("core.series", *arguments, stdin=nothing, stdout=stdout, stderr=nothing)
    deadline = time.monotonic() + 30
    while '"step": 3,' not in said.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.signal(signal.SIGINT)
    assert process.wait(20) == 3
    *_, checkpoint, error = map(json.loads, said.read_text().splitlines())
    assert (checkpoint["event"], error["code"]) == ("checkpoint", "stopped")
    assert Path(checkpoint["folder"]).parents[1] == out / "run-1"


def test_the_command_says_what_was_found_and_refuses_what_is_wrong(
    lasting: tuple[Path, Series],
    unlearnt: Reciter,
    sets: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def command(spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        with pytest.raises(SystemExit) as ended:
            main([str(tmp_path / "spec.json"), "--out", str(lasting[0])])
        return ended.value.code, json.loads(capsys.readouterr().out.splitlines()[-1])

    code, said = command(wanted(unlearnt, sets))
    assert (code, said["event"], said["verdicts"]) == (0, "done", ["inconclusive"] * 3)
    code, said = command(wanted(unlearnt, sets[:2]))
    assert (code, said["code"]) == (CheckpointError.exit_code, "checkpoint_mismatch")
    code, said = command(wanted(unlearnt, sets[:1]))
    assert (code, said["code"], said["param"]) == (SpecError.exit_code, "invalid_spec", "data.forget")


def test_a_wrong_spec_is_answered_before_torch_is_imported() -> None:
    command = "import sys, core.series; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
