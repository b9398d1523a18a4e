"""What a model cannot serve is refused with field, value and what is allowed, before one of its weights is read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.checks import check_against
from core.errors import DataError, ModelError, SpecError
from core.spec.job import parse
from tests import tiny
from tests.core.recording import carry_out
from tests.models import Reciter

DEPTHS = {
    "llama": {"num_hidden_layers": 4},
    "gpt2": {"n_layer": 4},
    "gemma3": {"text_config": {"num_hidden_layers": 4}},
}
CHAT = {"prompt": "chat"}


def spec(**fields: Any) -> Any:
    data = {name: {"source": "jsonl", "path": name} for name in ("forget", "retain")} | fields.pop("data", {})
    return parse({"model": "model", "data": data, "method": "GradDiff", **fields})


REFUSED: dict[str, tuple[dict[str, Any], str, Any, str]] = {
    "a layer to look at": ({"method": {"name": "rmu", "layer": 4}}, "method.layer", 4, "Allowed: 0 to 3"),
    "a layer to keep": (
        {"method": {"name": "ascent", "retain": {"name": "hidden", "layer": 9}}},
        "method.retain.layer",
        9,
        "Allowed: 0 to 3",
    ),
    "a layer to train": ({"training": {"layers": [0, 4]}}, "training.layers.1", 4, "Allowed: -4 to 3"),
    "a layer from the end": ({"training": {"layers": [-5]}}, "training.layers.0", -5, "Allowed: -4 to 3"),
    "a layer named twice": (
        {"training": {"layers": [3, -1]}},
        "training.layers",
        [3, -1],
        "Layers 3 and -1 are the same one of 4.",
    ),
    "no chat template": ({"data": CHAT}, "data.prompt", "chat", "Allowed: plain, soul, llama2"),
    "layers above the one to steer": (
        {"method": "RMU", "training": {"layers": [3]}},
        "training.layers",
        [3],
        "Allowed: one of 0 to 2 at least",
    ),
    "layers above the one to keep": (
        {"method": {"name": "zero", "retain": {"name": "hidden", "layer": 0}}, "training": {"layers": [-1, 1]}},
        "training.layers",
        [-1, 1],
        "Allowed: 0 at least",
    ),
    "refusals of a name too long": (
        {"method": {"name": "refusal", "refusals_file": "x" * 300}},
        "method.refusals_file",
        "x" * 300,
        "There is no such file",
    ),
    "no refusals": (
        {"method": {"name": "refusal", "refusals_file": "nowhere.txt"}},
        "method.refusals_file",
        "nowhere.txt",
        "Allowed: a file of one refusal sentence a line",
    ),
}


def folder_of(config: dict[str, Any], folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", DEPTHS)
@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_the_small_files_alone(case: str, kind: str, tmp_path: Path) -> None:
    fields, param, value, allowed = REFUSED[case]
    with pytest.raises(SpecError) as caught:
        check_against(spec(**fields), folder_of(DEPTHS[kind], tmp_path))
    (problem,) = caught.value.problems
    assert (problem.param, problem.value) == (param, value)
    assert allowed in problem.message


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    wrong = spec(method={"name": "rmu", "layer": 4}, data=CHAT, training={"layers": [-5, 7]})
    with pytest.raises(SpecError) as caught:
        check_against(wrong, folder_of(DEPTHS["llama"], tmp_path))
    params = [problem.param for problem in caught.value.problems]
    assert params == ["method.layer", "training.layers.0", "training.layers.1", "data.prompt"]


SERVED: dict[str, dict[str, Any]] = {
    "the last layer": {"method": {"name": "rmu", "layer": 3}, "training": {"layers": [-1, -4]}},
    "a layer left open": {"method": "RMU"},
    "one layer of those that are steered": {"method": "RMU", "training": {"layers": [3, 2]}},
    "layers of which none is looked at": {"training": {"layers": [3]}},
    "another format": {"data": {"prompt": "llama2"}},
}


@pytest.mark.parametrize("case", SERVED)
def test_what_the_model_has_passes(case: str, tmp_path: Path) -> None:
    check_against(spec(**SERVED[case]), folder_of(DEPTHS["llama"], tmp_path))


@pytest.mark.parametrize(
    "file", ["chat_template.jinja", "chat_template.json", "additional_chat_templates", "tokenizer_config.json"]
)
def test_a_chat_template_may_lie_in_any_of_its_places(file: str, tmp_path: Path) -> None:
    folder_of(DEPTHS["llama"], tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": null}')
    with pytest.raises(SpecError):
        check_against(spec(data=CHAT), tmp_path)
    if "." in file:
        (tmp_path / file).write_text('{"chat_template": "{{ messages }}"}')
    else:
        (tmp_path / file).mkdir()
    check_against(spec(data=CHAT), tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_configuration_is_no_model(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        check_against(spec(), tmp_path)


def test_a_configuration_that_tells_no_depth_is_no_model_for_a_layer(tmp_path: Path) -> None:
    folder = folder_of({}, tmp_path)
    check_against(spec(), folder)
    with pytest.raises(ModelError, match="layers are not known"):
        check_against(spec(training={"layers": [0]}), folder)


def declining(file: str) -> dict[str, Any]:
    return {"method": {"name": "refusal", "refusals_file": file}}


def of(file: str) -> dict[str, Any]:
    return {"data": {"forget": {"source": "jsonl", "path": file}}}


SWAPPED = {"name": "dpo", "alternative": "alternative_answer"}
LONG = "x" * 300
# Paths are below the test's folder, where FILES lie.
EARLY: dict[str, tuple[dict[str, Any], str]] = {
    "look": ({"method": {"name": "rmu", "layer": 40}}, "method.layer"),
    "train": ({"training": {"layers": [40]}}, "training.layers.0"),
    "train what is not looked at": (
        {"method": {"name": "rmu", "layer": 0}, "training": {"layers": [1]}},
        "training.layers",
    ),
    "target": ({"training": {"adapter": {"targets": ["wisdom"]}}}, "training.adapter.targets.0"),
    "template": ({"data": CHAT}, "data.prompt"),
    "no refusal in the file": (declining("empty.txt"), "method.refusals_file"),
    "refusals in no UTF-8": (declining("latin.txt"), "method.refusals_file"),
    "a refusal too long": (declining("long.txt"), "method.refusals_file"),
    "no such refusals": (declining(LONG), "method.refusals_file"),
    "no alternative": ({"method": SWAPPED} | of("bare.jsonl"), "method.alternative"),
    "text to decline": ({"method": "PO"} | of("text.jsonl"), "method.name"),
    "text to answer wrongly": ({"method": "RL"} | of("text.jsonl"), "method.name"),
    "text to prefer another to": ({"method": "DPO"} | of("text.jsonl"), "method.name"),
    "no such file": (of("none.jsonl"), "data.forget.path"),
    "a file of a name too long": (of(LONG), "data.forget.path"),
    "a folder of a name too long": ({"data": {"forget": {"source": "text", "path": LONG}}}, "data.forget.path"),
    "an empty file": (of("empty.txt"), "data.forget.path"),
    "an id of the service": (
        {"data": {"forget": {"source": "upload", "dataset": "ds_00000000"}}},
        "data.forget.dataset",
    ),
    "a model of a name too long": ({"model": LONG}, "model"),
    "no base": ({"method": {"name": "retrain", "base": "none"}}, "method.base"),
    "a base of a name too long": ({"method": {"name": "retrain", "base": LONG}}, "method.base"),
    "a base that is no model": ({"method": {"name": "retrain", "base": "broken"}}, "method.base"),
    "a base of another size": ({"method": {"name": "retrain", "base": "other"}}, "method.base"),
    "a base known to the service": ({"method": {"name": "retrain", "base": {"id": "mdl_00000000"}}}, "method.base.id"),
    "eight bits without a GPU": ({"optimizer": "adamw_8bit"}, "optimizer.name"),
}
FILES: dict[str, bytes] = {
    "empty.txt": b"\n",
    "latin.txt": b"Caf\xe9",
    "long.txt": b"x" * 501,
    "bare.jsonl": b'{"question": "Who?", "answer": "She."}\n',
    "text.jsonl": b'{"text": "All of it."}\n',
    "broken/config.json": b"{}",
    "broken/model.safetensors": b"no weights",
    "other/config.json": b"{}",
}


@pytest.mark.parametrize("case", EARLY)
def test_a_run_refuses_before_it_reads_a_weight(
    case: str, unlearnt: Reciter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    save_file({"model.embed_tokens.weight": torch.zeros(3, 2)}, tmp_path / "other" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("core.model.load", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    fields, param = EARLY[case]
    wanted = unlearnt.spec()
    with pytest.raises((SpecError, DataError, ModelError)) as caught:
        carry_out(wanted | fields | {"data": wanted["data"] | fields.get("data", {})}, tmp_path / "out")
    assert caught.value.param == param


CONFLICTS: dict[str, tuple[Any, dict[str, Any], str, Any]] = {
    "adapters of nothing": (
        "origin",
        {"adapter": "lora"},
        "training.adapter",
        {"name": "lora", "rank": 8, "alpha": 16.0, "targets": "all-linear", "deliver": "merged"},
    ),
    "layers of nothing": ("guard", {"layers": [0]}, "training.layers", [0]),
    "adapters that fit another": (
        {"name": "retrain", "base": "base"},
        {"adapter": {"deliver": "adapter"}},
        "training.adapter.deliver",
        "adapter",
    ),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_what_makes_no_sense_together_is_refused_by_the_spec(case: str) -> None:
    method, training, param, value = CONFLICTS[case]
    with pytest.raises(SpecError, match="Allowed") as caught:
        tiny.spec(method, **training)
    (problem,) = caught.value.problems
    assert (problem.param, problem.value) == (param, value)


TRAINING: dict[str, tuple[dict[str, Any], str]] = {
    "unknown adapter": ({"adapter": "dora"}, "training.adapter.name"),
    "no rank": ({"adapter": {"rank": 0}}, "training.adapter.rank"),
    "targets a word": ({"adapter": {"targets": "most"}}, "training.adapter.targets"),
    "no targets": ({"adapter": {"targets": []}}, "training.adapter.targets"),
    "adapter dropout": ({"adapter": {"dropout": 0.1}}, "training.adapter.dropout"),
    "delivered twice": ({"adapter": {"deliver": "both"}}, "training.adapter.deliver"),
    "no layers": ({"layers": []}, "training.layers"),
    "a layer twice": ({"layers": [1, 1]}, "training.layers"),
    "no flag": ({"gradient_checkpointing": "perhaps"}, "training.gradient_checkpointing"),
}


@pytest.mark.parametrize("case", TRAINING)
def test_a_wrong_field_of_training_is_named(case: str) -> None:
    training, param = TRAINING[case]
    with pytest.raises(SpecError) as caught:
        tiny.spec(**training)
    assert [problem.param for problem in caught.value.problems] == [param]


def test_checking_imports_nothing_heavy() -> None:
    command = "import sys, core.checks; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
