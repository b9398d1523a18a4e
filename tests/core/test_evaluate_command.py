"""`python -m core.evaluate` as a user meets it: what it refuses and in which words, and Ctrl-C."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from core import adapters
from core.data import Inputs
from core.errors import SpecError, Stopped
from core.evaluate import _parser, source
from core.evaluate import request as asked_for
from core.evaluation import whole
from core.model import load
from core.report.digest import file_digests
from core.spec.job import parse
from core.spec.training import LoraAdapter
from tests import models
from tests.core.evaluating import SPEC, changed, evaluate, refused, report_of, request, same, sets
from tests.core.recording import Recorder, carry_out
from tests.models import ROOT, Reciter


@pytest.fixture(scope="module")
def given(unlearnt: Reciter, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name three sets."""
    return sets(unlearnt, tmp_path_factory.mktemp("sets"))


Words = Callable[[Reciter, list[str], Path], Sequence[object]]
REFUSED: dict[str, tuple[Words, str, str | None, str]] = {
    "no model": (lambda _m, s, _f: s, "invalid_spec", "model", "required"),
    "no forget": (lambda m, _s, _f: [m.model], "invalid_spec", "data.forget", "required"),
    "a folder that is no model": (lambda _m, s, f: [f, *s], "invalid_model", "model", "holds no config.json"),
    "no folder": (lambda _m, s, f: [f / "none", *s], "invalid_model", "model", "There is no folder"),
    "pickle": (lambda m, s, f: [pickled(m, f), *s], "invalid_model", "model", r"holds no \*.safetensors"),
    "adapters alone": (lambda m, s, f: [adapted(m, f), *s], "invalid_model", "model", "must be merged into their mod"),
    "before": (lambda m, s, f: [m.model, *s, "--before", f], "invalid_model", "before", "before: .* no config.json"),
    "cut off JSON": (
        lambda m, _s, _f: [m.model, "--forget", '{"source": "tofu"'],
        "invalid_spec",
        "data.forget",
        "a file of JSON lines, or a source as a JSON object; this is no JSON",
    ),
    "unknown source": (
        lambda m, _s, _f: [m.model, "--forget", '{"source": "tofoo", "path": "x"}'],
        "invalid_spec",
        "data.forget.source",
        "Did you mean 'tofu'",
    ),
    "no such file": (lambda m, _s, f: [m.model, "--forget", f / "no"], "invalid_data", None, "cannot be read: No such"),
    "no template": (lambda m, s, _f: [m.model, *s, "--prompt", "chat"], "invalid_spec", "data.prompt", "chat template"),
    "unknown profile": (
        lambda m, s, f: in_file(m, s, f, profile="erasur"),
        "invalid_spec",
        "profile",
        "mean 'erasure'",
    ),
    "a gate on nothing": (
        lambda m, s, f: in_file(m, s, f, gates=[{"metric": "text.perplexity", "at_most": 9}]),
        "invalid_spec",
        "gates.0.metric",
        "data.text is required",
    ),
    "data is no object": (lambda m, s, f: in_file(m, s, f, data=["x"]), "invalid_spec", "data", "a JSON object"),
    "nor evaluation": (lambda m, s, f: in_file(m, s, f, evaluation=3), "invalid_spec", "evaluation", "a JSON object"),
    "nor the spec": (lambda m, s, f: [m.model, *s, "--spec", a_file(f, "[]")], "invalid_spec", "", "holds no JSON obj"),
    "spec is no JSON": (lambda m, s, f: [m.model, *s, "--spec", a_file(f, "{")], "invalid_spec", "", "is not JSON"),
    "no spec": (lambda m, s, f: [m.model, *s, "--spec", f / "none"], "invalid_spec", "", "cannot be read: No such"),
    "retrained nowhere": (
        lambda m, s, f: [m.model, *s, "--retrained", f / "none"],
        "invalid_data",
        "evaluation.retrained.rows",
        "none holds no after-forget.parquet",
    ),
    "retrained damaged": (
        lambda m, s, f: [m.model, *s, "--retrained", pickled(m, f)],
        "invalid_model",
        "evaluation.retrained.model",
        r"evaluation.retrained.model: .* holds no \*.safetensors",
    ),
    "reference nowhere": (
        lambda m, s, f: in_file(m, s, f, evaluation={"membership": ["reference"], "reference": str(f / "none")}),
        "invalid_model",
        "evaluation.reference",
        "evaluation.reference: There is no folder .*none",
    ),
    "rows of none": (lambda _m, _s, f: ["--rows", f], "invalid_data", "rows", "holds no after-forget.parquet"),
    "rows and a model": (
        lambda m, s, f: [m.model, *s[:2], "--rows", f, "--prompt", "soul"],
        "invalid_spec",
        "rows",
        "Not allowed beside it: a model, --forget, --prompt",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_refuses_and_in_which_words(what: str, unlearnt: Reciter, given: list[str], tmp_path: Path) -> None:
    words, code, param, said = REFUSED[what]
    exit_code, error = refused(*words(unlearnt, given, tmp_path), "--out", tmp_path / "out")
    assert (exit_code, error["code"], error["retryable"]) == (2, code, False)
    assert param is None or (error["param"] or "") == param
    assert re.search(said, error["message"]), error["message"]
    assert not (tmp_path / "out" / "report.json").exists()
    assert not list(tmp_path.glob("out/rows/*")), "told before a model is asked anything"


def pickled(reciter: Reciter, folder: Path) -> Path:
    model = Path(shutil.copytree(reciter.model, folder / "pickled"))
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    return model


def adapted(reciter: Reciter, folder: Path) -> Path:
    """Adapters as a run with `deliver` "adapter" leaves them."""
    model, tokenizer = load(reciter.model, torch.device("cpu"))
    adapters.inject(model, LoraAdapter(), ["model.layers.0.self_attn.q_proj"], 0)
    adapters.save(model, folder / "adapters", "somewhere")
    tokenizer.save_pretrained(folder / "adapters")
    return folder / "adapters"


def a_file(folder: Path, text: str) -> Path:
    (folder / "file.json").write_text(text)
    return folder / "file.json"


def in_file(reciter: Reciter, given: list[str], folder: Path, **fields: Any) -> list[object]:
    return [reciter.model, *given, "--spec", request(folder / "spec.json", **fields)]


def test_options_go_over_the_request_in_the_file_and_nothing_of_training_counts(tmp_path: Path) -> None:
    of_a_run = {
        "model": "in-the-file",
        "preset": "soul/tofu/GradDiff/second-order",
        "method": {"name": "npo", "beta": 0.5},
        "optimizer": "sophia_g",
        "training": {"stop_when": "gates", "steps": 7},
        "data": {"forget": {"source": "jsonl", "path": "f"}, "max_length": 99},
        "evaluation": {"bootstrap": 200},
        "seed": 3,
    }
    file = a_file(tmp_path, json.dumps(of_a_run))

    def asked(*words: object) -> Any:
        options = _parser().parse_args([*map(str, words), "--spec", str(file), "--out", "out"])
        return asked_for(options).model_dump(mode="json")

    plain = asked()
    assert (plain["method"]["name"], plain["optimizer"]["name"], plain["training"]["stop_when"]) == (
        "origin",
        "adamw",
        None,
    )
    assert (plain["model"]["path"], plain["data"]["max_length"], plain["seed"]) == ("in-the-file", 99, 3)
    assert plain["evaluation"]["bootstrap"] == 200
    words = ("given", "--forget", "g", "--prompt", "soul", "--retrained", tmp_path, "--profile", "harm")
    over = asked(*words)
    assert (over["model"]["path"], over["data"]["forget"]["path"], over["profile"]) == ("given", "g", "harm")
    assert (over["data"]["prompt"], over["data"]["max_length"]) == ("soul", 99)
    assert (over["evaluation"]["retrained"]["rows"], over["evaluation"]["bootstrap"]) == (str(tmp_path), 200)
    (tmp_path / "config.json").write_text("{}")
    assert asked(*words)["evaluation"]["retrained"]["model"] == {"path": str(tmp_path)}


@pytest.mark.parametrize("text", ["{", '{"source"}', "{'source': 'tofu'}"])
def test_a_source_that_is_no_json_is_quoted(text: str) -> None:
    with pytest.raises(SpecError, match=r"data.text: .* this is no JSON") as caught:
        source(text, "text")
    assert caught.value.problems[0].value == text
    assert source(" {} ", "text") == {}
    assert source("a{b}.jsonl", "text") == {"source": "jsonl", "path": "a{b}.jsonl"}


def test_where_it_may_not_write(unlearnt: Reciter, given: list[str], tmp_path: Path) -> None:
    spec = request(tmp_path / "spec.json")
    model = changed(unlearnt.model, tmp_path / "model")
    inside = (model, *given, "--spec", spec, "--out", model / "measured")
    code, error = refused(*inside)
    assert (code, error["param"]) == (2, "out")
    assert "must stay as it is" in error["message"]
    code, error = refused(unlearnt.model, *given, "--before", model, "--spec", spec, "--out", model)
    assert (code, error["param"]) == (2, "out")
    code, error = refused(model, *given, "--spec", spec, "--out", spec)
    assert code == 2
    assert "cannot be made a folder" in error["message"]

    ran = tmp_path / "ran"
    carry_out(unlearnt.spec(training={"steps": 1, "batch_size": 2}, evaluation=SPEC["evaluation"]), ran)
    evidence = (ran / "report.json").read_bytes()
    for words in ((ran / "model", *given, "--spec", spec), ("--rows", ran)):
        code, error = refused(*words, "--out", ran)
        assert (code, error["code"]) == (5, "checkpoint_mismatch")
        assert "the report of something else" in error["message"]
    assert (ran / "report.json").read_bytes() == evidence

    out = tmp_path / "out"
    first = report_of(out, ran / "model", *given, "--spec", spec)
    assert report_of(out, ran / "model", *given, "--spec", spec).after == first.after, "the same may be done again"
    assert refused(model, *given, "--spec", spec, "--out", out)[0] == 5
    assert refused("--rows", out, "--out", out)[0] == 5
    again = tmp_path / "again"
    for _ in range(2):
        assert same(report_of(again, "--rows", out, "--spec", spec).after, first.after)


def test_rows_of_a_run_can_be_asked_too_but_not_those_of_two_requests(
    unlearnt: Reciter, given: list[str], tmp_path: Path
) -> None:
    ran, spec = tmp_path / "ran", request(tmp_path / "spec.json")
    report = carry_out(unlearnt.spec(training={"steps": 1}, evaluation=SPEC["evaluation"]), ran).report
    gates = [{"metric": "forget.probability", "relative_to": "before", "at_most": 2}]
    found = report_of(tmp_path / "found", "--rows", ran, "--spec", request(tmp_path / "gates.json", gates=gates))
    for when in ("before", "after"):
        assert same(getattr(found, when), getattr(report, when))
    assert found.verdict.gates[0].outcome == "held"
    # A set that only an earlier request had would be measured as if it were this model's.
    report_of(tmp_path / "out", unlearnt.model, *given, "--spec", spec)
    shutil.copy(tmp_path / "out" / "rows" / "after-holdout.parquet", ran / "rows")
    code, error = refused("--rows", ran, "--out", tmp_path / "mixed")
    assert (code, error["code"], error["param"]) == (2, "invalid_data", "rows")
    assert "rows of several requests: after-holdout.parquet" in error["message"]
    (ran / "rows" / "after-holdout.parquet").write_bytes(b"PAR1")
    code, error = refused("--rows", ran, "--out", tmp_path / "damaged")
    assert "holds no scored rows" in error["message"]


def test_rows_of_another_set_are_no_retrained_model(unlearnt: Reciter, given: list[str], tmp_path: Path) -> None:
    spec, fewer = request(tmp_path / "spec.json"), models.write_lines(tmp_path / "fewer.jsonl", models.people(2)[:4])
    report_of(tmp_path / "other", unlearnt.model, *given, "--forget", fewer, "--spec", spec)
    out = tmp_path / "out"
    code, error = refused(unlearnt.model, *given, "--retrained", tmp_path / "other", "--spec", spec, "--out", out)
    assert (code, error["code"], error["param"]) == (2, "invalid_data", "evaluation.retrained.rows")
    assert "holds 4 rows of forget, the set 6" in error["message"]


def test_usage_is_told_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ((["m", "--profile", "erasur"], "invalid choice: 'erasur'"), (["m"], "--out"), (["--help"], "")):
        with pytest.raises(SystemExit) as left:
            _parser().parse_args(words)
        assert left.value.code == (2 if said else 0)
        shown = capsys.readouterr()
        assert said in shown.err
    assert "--real-authors" in shown.out
    assert "without a model" in shown.out


def test_the_command_line_hands_everything_on() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", "evaluate", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith("usage: lethe evaluate")


@pytest.mark.parametrize("until", ['"load"', '"progress"', '"relearn"'])
def test_ctrl_c_ends_with_3_and_leaves_no_report(
    until: str, unlearnt: Reciter, given: list[str], tmp_path: Path
) -> None:
    attacks = {"attacks": [{"name": "relearn", "steps": 1}, {"name": "noise"}]}
    spec = request(tmp_path / "spec.json", evaluation=SPEC["evaluation"] | attacks)
    files = file_digests(unlearnt.model)
    code, events = evaluate(unlearnt.model, *given, "--spec", spec, "--out", tmp_path / "out", until=until)
    assert code == 3
    last = events[-1]
    assert (last["event"], last["code"], last["retryable"]) == ("error", "stopped", True)
    assert not [event for event in events if event.get("attack") == "noise"]
    assert not (tmp_path / "out" / "report.json").exists()
    assert file_digests(unlearnt.model) == files


def test_a_stop_that_came_while_libraries_were_imported_is_heeded(unlearnt: Reciter, tmp_path: Path) -> None:
    heard = Recorder()
    heard.stop.set()
    spec = parse(unlearnt.spec(method="origin"))
    with pytest.raises(Stopped):
        whole.evaluate(spec, Inputs(), tmp_path, emit=heard, stop=heard.stop)
    assert heard.events == []
