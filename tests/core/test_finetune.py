"""Fine-tuning: the model learns its set, a stop costs nothing, and a spec that is wrong is answered with its field."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from core import finetune as module
from core.data.inputs import Inputs
from core.errors import CheckpointError, DataError, SpecError, Stopped
from core.finetune import finetune
from core.spec.finetune import parse
from tests.core.recording import Recorder, carry_out, weights_digest
from tests.models import Reciter


def wanted(unlearnt: Reciter, **fields: Any) -> dict[str, Any]:
    data = {"train": {"source": "jsonl", "path": str(unlearnt.retain)}}
    training = {"steps": 5, "batch_size": 4} | fields.pop("training", {})
    optimizer = {"name": "adamw", "lr": 5e-3}
    return (
        {"model": str(unlearnt.model), "data": data, "optimizer": optimizer, "threads": 1}
        | fields
        | {"training": training}
    )


def tuned(spec: dict[str, Any], out: Path, heard: Recorder | None = None) -> dict[str, Any]:
    heard = heard or Recorder()
    return finetune(parse(spec), Inputs(), out, emit=heard, stop=heard.stop)


def test_the_defaults_are_those_of_souls_target_models() -> None:
    data = {"train": {"source": "jsonl", "path": "rows"}}
    job = parse({"model": "m", "data": data}).job()
    assert job.training.epochs == 10
    assert (job.training.batch_size, job.training.warmup, job.training.schedule) == (16, 0, "linear")
    assert (job.optimizer.lr, job.optimizer.weight_decay) == (1e-5, 0)  # type: ignore[union-attr]
    assert (job.method.name, job.method.retain.name) == ("zero", "nll")
    assert parse({"model": "m", "data": data, "training": {"steps": 3}}).job().training.epochs is None


def test_a_set_is_learnt_as_fine_tuning_on_the_retain_set_learns_it(unlearnt: Reciter, tmp_path: Path) -> None:
    spec = wanted(unlearnt, training={"steps": 40})
    heard = Recorder()
    result = tuned(spec, tmp_path / "tuned", heard)
    assert result["losses"][-1] < 0.3 * result["losses"][0]
    assert json.loads((tmp_path / "tuned" / "finetune.json").read_text()) == result
    assert [e["phase"] for e in heard.of("phase")] == ["load", "train"]
    assert (len(heard.of("step")), heard.of("done")[0]["loss"]) == (40, result["final_loss"])
    again = unlearnt.spec(method="FT", **{key: spec[key] for key in ("optimizer", "training")})
    carry_out(again | {"training": spec["training"] | {"warmup": 0}}, tmp_path / "job")
    assert weights_digest(tmp_path / "tuned") == weights_digest(tmp_path / "job")
    AutoModelForCausalLM.from_pretrained(tmp_path / "tuned" / "model")


@pytest.mark.parametrize("adapter", [None, "lora"], ids=["weights", "adapters"])
def test_interrupted_it_ends_the_same(adapter: Any, unlearnt: Reciter, tmp_path: Path) -> None:
    spec = wanted(unlearnt, training={"adapter": adapter})
    tuned(spec, tmp_path / "whole")
    with pytest.raises(Stopped):
        tuned(spec, tmp_path / "parts", Recorder(lambda e: e["event"] == "step" and e["step"] == 2))
    heard = Recorder()
    tuned(spec, tmp_path / "parts", heard)
    assert heard.of("accepted")[0]["resumed_from"] == 2
    assert weights_digest(tmp_path / "parts") == weights_digest(tmp_path / "whole")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to train on": ({"data": {}}, "data.train"),
    "an unknown field": ({"forget": 3}, "forget"),
    "an unknown source": ({"data": {"train": {"source": "dream"}}}, "data.train.source"),
    "two lengths": ({"training": {"epochs": 1, "steps": 1}}, "training.steps"),
    "no such layer": ({"training": {"layers": [7]}}, "training.layers.0"),
    "no template": ({"data": {"prompt": "chat"}}, "data.prompt"),
    "no such target": ({"training": {"adapter": {"targets": ["wisdom"]}}}, "training.adapter.targets.0"),
    "curvature of a set to forget": (
        {"optimizer": {"name": "sophia_g", "curvature_on": "forget"}},
        "optimizer.curvature_on",
    ),
    "curvature of both sets": ({"optimizer": {"name": "sophia_h", "curvature_on": "both"}}, "optimizer.curvature_on"),
    "eight bits without a GPU": ({"optimizer": {"name": "adamw_8bit"}}, "optimizer.name"),
    "an id of the service": ({"data": {"train": {"source": "upload", "dataset": "ds_00000000"}}}, "data.train.dataset"),
    "several processes": ({"training": {"processes": 2}}, "training.processes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_spec_is_refused_with_its_field(
    case: str, unlearnt: Reciter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, param = WRONG[case]
    spec = wanted(unlearnt)
    if fields.get("data") != {}:
        fields = {
            key: {**spec.get(key, {}), **value} if isinstance(value, dict) else value for key, value in fields.items()
        }
    monkeypatch.setattr("core.model.load", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SpecError) as caught:
        tuned(spec | fields, tmp_path)
    assert caught.value.problems[0].param == param


def test_a_bad_line_names_the_field_of_fine_tuning(unlearnt: Reciter, tmp_path: Path) -> None:
    spec = wanted(unlearnt)
    spec["data"] = {"train": {"source": "tofu", "split": "full", "path": str(tmp_path / "none")}}
    with pytest.raises(DataError, match=r"data\.train") as caught:
        tuned(spec, tmp_path / "out")
    assert caught.value.param == "data.train.path"


def test_the_command_says_a_finished_run_again_and_refuses_another_in_its_folder(
    unlearnt: Reciter, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    file, out = tmp_path / "spec.json", tmp_path / "out"

    def command(spec: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        file.write_text(json.dumps(spec))
        with pytest.raises(SystemExit) as ended:
            module.main([str(file), "--out", str(out)])
        return ended.value.code, json.loads(capsys.readouterr().out.splitlines()[-1])

    code, first = command(wanted(unlearnt))
    assert (code, first["event"]) == (0, "done")
    code, second = command(wanted(unlearnt))
    assert code == 0
    assert second == {**first, "finished_before": True, "at": second["at"]}
    code, error = command(wanted(unlearnt, seed=1))
    assert (code, error["code"]) == (CheckpointError.exit_code, "checkpoint_mismatch")
    assert command({})[0] == SpecError.exit_code


def test_a_wrong_spec_is_answered_before_torch_is_imported() -> None:
    import subprocess

    command = "import sys, core.finetune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
    assert torch.__version__
