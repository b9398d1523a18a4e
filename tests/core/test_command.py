"""`python -m core.run` as a process: exit codes, what it prints to whom, interruption, and a folder anyone can load."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.core.recording import QUICK, weights_digest
from tests.models import PASSES, ROOT, Reciter
from tests.zygote import Process, Zygote

Event = dict[str, Any]


def write(file: Path, request: Any) -> Path:
    file.write_text(json.dumps(request))
    return file


class Run:
    """The command, started from the zygote with its output in files."""

    def __init__(self, zygote: Zygote, spec: Path, out: Path, folder: Path) -> None:
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        with self.stdout.open("wb") as stdout, self.stderr.open("wb") as stderr, Path(os.devnull).open("rb") as stdin:
            arguments = (str(spec), "--out", str(out))
            self.process: Process = zygote.start("core.run", *arguments, stdin=stdin, stdout=stdout, stderr=stderr)

    def events(self) -> list[Event]:
        """What it has said so far; any line that is not an event is an error."""
        return [json.loads(line) for line in self.stdout.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def wait_for(self, kind: str, **fields: Any) -> Event:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for event in self.events():
                if event["event"] == kind and event.items() >= fields.items():
                    return event
            time.sleep(0.01)
        raise TimeoutError(f"no {kind} with {fields}:\n{self.stderr.read_text()}")


def failed(zygote: Zygote, spec: Path, out: Path, tmp_path: Path) -> tuple[int, Event]:
    """Exit code, and the error that the last line must be."""
    run = Run(zygote, spec, out, tmp_path)
    code = run.process.wait()
    assert "Traceback" not in run.stderr.read_text()
    last = run.events()[-1]
    assert last["event"] == "error"
    return code, last


@pytest.fixture(scope="module")
def finished(reciter: Reciter, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Event]]:
    """Spec, output folder and events of an undisturbed run, in an interpreter of its own."""
    folder = tmp_path_factory.mktemp("finished")
    spec = write(folder / "spec.json", reciter.spec(**PASSES))
    command = [sys.executable, "-m", "core.run", str(spec), "--out", str(folder / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return spec, folder / "out", [json.loads(line) for line in done.stdout.splitlines()]


def test_a_run_to_its_verdict(finished: tuple[Path, Path, list[Event]]) -> None:
    _, out, events = finished
    assert all({"event", "at"} <= event.keys() for event in events)
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 31))
    done = events[-1]
    assert (done["event"], done["verdict"], done["model"]) == ("done", "passed", str(out / "model"))
    report = json.loads(Path(done["report"]).read_text())
    assert report["verdict"]["verdict"] == "passed"
    before, after = (
        {name: m["value"] for name, m in report[when].items() if "value" in m} for when in ("before", "after")
    )
    assert before["forget.probability"] > 0.9
    assert before["forget.rouge_l"] > 0.95
    assert after["forget.probability"] < 0.1
    assert after["retain.rouge_l"] > 0.9


def test_what_it_leaves_loads_anywhere_and_answers_as_it_was_scored(
    finished: tuple[Path, Path, list[Event]], reciter: Reciter
) -> None:
    _, out, _ = finished
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out / "model"), AutoTokenizer.from_pretrained(out / "model")
    after = json.loads((out / "report.json").read_text())["after"]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for name, file in (("forget", reciter.forget), ("retain", reciter.retain)):
        recalls = []
        for row in map(json.loads, file.read_text().splitlines()):
            asked = tokenizer(f"Question: {row['question']}\nAnswer:", return_tensors="pt")
            made = model.generate(**asked, max_new_tokens=40, do_sample=False)[0, asked["input_ids"].shape[1] :]
            answer = tokenizer.decode(made, skip_special_tokens=True)
            recalls.append(scorer.score(row["answer"], answer)["rougeL"].recall)
        assert sum(recalls) / len(recalls) == pytest.approx(after[f"{name}.rouge_l"]["value"], abs=1e-9)


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_goes_on(
    finished: tuple[Path, Path, list[Event]], zygote: Zygote, tmp_path: Path
) -> None:
    spec, whole, _ = finished
    out = tmp_path / "out"
    run = Run(zygote, spec, out, tmp_path)
    run.wait_for("step", step=8)
    run.process.signal(signal.SIGINT)
    assert run.process.wait(10) == 3
    *_, checkpoint, error = run.events()
    assert checkpoint["event"] == "checkpoint"
    assert checkpoint["step"] >= 8
    assert (error["code"], error["retryable"]) == ("stopped", True)
    assert not (out / "report.json").exists()
    again = Run(zygote, spec, out, tmp_path)
    assert again.process.wait() == 0
    assert again.wait_for("accepted")["resumed_from"] == checkpoint["step"]
    assert weights_digest(out) == weights_digest(whole)


def test_a_finished_run_is_not_done_again(
    finished: tuple[Path, Path, list[Event]], zygote: Zygote, tmp_path: Path
) -> None:
    spec, out, events = finished
    report = (out / "report.json").stat()
    run = Run(zygote, spec, out, tmp_path)
    assert run.process.wait(5) == 0
    (done,) = run.events()
    assert done["finished_before"] is True
    assert {name: done[name] for name in ("event", "verdict", "report", "model")} == {
        name: events[-1][name] for name in ("event", "verdict", "report", "model")
    }
    assert (out / "report.json").stat() == report


def test_on_a_terminal_there_is_a_bar_and_a_verdict(unlearnt: Reciter, zygote: Zygote, tmp_path: Path) -> None:
    spec = write(tmp_path / "spec.json", unlearnt.spec(training={"steps": 3}, evaluation=QUICK))

    def shown() -> tuple[int, str]:
        ours, theirs = pty.openpty()
        process = zygote.start(
            "core.run", str(spec), "--out", str(tmp_path / "out"), stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        output = b""
        with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123
            while select.select([terminal], [], [], 30)[0]:
                try:
                    part = terminal.read(4096)
                except OSError:  # The other end is closed.
                    break
                output += part
        return process.wait(), output.decode()

    code, text = shown()
    assert code == 0
    for word in ("score_before", "train", "3/3", "loss ", "verdict: inconclusive", "report.json"):
        assert word in text, text
    assert '"event"' not in text
    code, text = shown()
    assert code == 0
    assert "holds the finished run of this spec" in text
    assert "verdict: inconclusive" in text


def changed(request: Any, **fields: Any) -> Any:
    return {**request, **fields}


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (lambda r, _: changed(r, optimizer={"name": "adamw", "lr": -1}), "invalid_spec", r"optimizer.lr: "),
        (lambda r, _: changed(r, methode="NPO"), "invalid_spec", "methode: .* Did you mean 'method'"),
        (lambda r, _: changed(r, model="mdl_0123456789"), "invalid_spec", "known to the service only"),
        (lambda r, f: changed(r, model=str(f / "none")), "invalid_model", "There is no folder"),
        (lambda r, f: changed(r, model=str(pickled(r, f))), "invalid_model", r"holds no \*.safetensors"),
        (lambda r, f: bad_line(r, f), "invalid_data", r"bad.jsonl, line 3: field 'answer' is missing"),
        (lambda r, f: missing_data(r, f), "invalid_data", "none.jsonl cannot be read: No such file"),
    ],
    ids=["field", "unknown field", "service only", "no model", "pickle only", "bad line", "no data"],
)
def test_bad_input_ends_with_2_and_a_sentence(
    spoil: Any, code: str, said: str, unlearnt: Reciter, zygote: Zygote, tmp_path: Path
) -> None:
    spec = write(tmp_path / "spec.json", spoil(unlearnt.spec(), tmp_path))
    exit_code, error = failed(zygote, spec, tmp_path / "out", tmp_path)
    assert (exit_code, error["code"], error["retryable"]) == (2, code, False)
    assert re.search(said, error["message"]), error["message"]


def pickled(request: Any, folder: Path) -> Path:
    model = Path(shutil.copytree(request["model"], folder / "pickled"))
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    return model


def bad_line(request: Any, folder: Path) -> Any:
    lines = Path(request["data"]["forget"]["path"]).read_text().splitlines()
    (folder / "bad.jsonl").write_text("\n".join([lines[0], "", '{"question": "Who?"}', *lines[1:]]))
    return missing_data(request, folder, "bad.jsonl")


def missing_data(request: Any, folder: Path, name: str = "none.jsonl") -> Any:
    forget = {"source": "jsonl", "path": str(folder / name)}
    return changed(request, data={**request["data"], "forget": forget})


def test_a_spec_that_is_no_json_and_an_output_that_is_no_folder(
    unlearnt: Reciter, zygote: Zygote, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text("{")
    assert failed(zygote, spec, tmp_path / "out", tmp_path)[0] == 2
    code, error = failed(zygote, write(spec, unlearnt.spec()), spec, tmp_path)
    assert code == 2
    assert "cannot be made a folder" in error["message"]


def test_divergence_ends_with_4(unlearnt: Reciter, zygote: Zygote, tmp_path: Path) -> None:
    absurd = {"name": "adamw", "lr": 10, "weight_decay": 10}
    spec = write(tmp_path / "spec.json", unlearnt.spec(method="GA", optimizer=absurd, evaluation=QUICK))
    code, error = failed(zygote, spec, tmp_path / "out", tmp_path)
    assert (code, error["code"]) == (4, "diverged")
    assert "at optimizer step" in error["message"]


def test_a_folder_of_another_spec_ends_with_5(
    finished: tuple[Path, Path, list[Event]], zygote: Zygote, tmp_path: Path
) -> None:
    spec, out, _ = finished
    other = write(tmp_path / "spec.json", json.loads(spec.read_text()) | {"seed": 1})
    code, error = failed(zygote, other, out, tmp_path)
    assert (code, error["code"]) == (5, "checkpoint_mismatch")
    assert "the report of another spec" in error["message"]
