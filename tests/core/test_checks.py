"""What a model cannot serve is refused with field, value and what is allowed, before one of its weights is read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.checks import check_against
from core.errors import ModelError, SpecError
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
    "a layer named twice": ({"training": {"layers": [3, -1]}}, "training.layers", [3, -1], "named twice"),
    "no chat template": ({"data": CHAT}, "data.prompt", "chat", "Allowed: plain, soul, llama2"),
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


@pytest.mark.parametrize(
    "fields",
    [
        {"method": {"name": "rmu", "layer": 40}},
        {"training": {"layers": [40]}},
        {"training": {"adapter": {"targets": ["wisdom"]}}},
        {"data": CHAT},
    ],
    ids=["look", "train", "target", "template"],
)
def test_a_run_refuses_before_it_reads_a_weight(
    fields: dict[str, Any], unlearnt: Reciter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.model.load", lambda *_: pytest.fail("weights were read"))
    wanted = unlearnt.spec()
    with pytest.raises(SpecError):
        carry_out(wanted | fields | {"data": wanted["data"] | fields.get("data", {})}, tmp_path)


CONFLICTS: dict[str, tuple[Any, dict[str, Any], str, Any]] = {
    "adapters of nothing": ("origin", {"adapter": "lora"}, "training.adapter", "lora"),
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
