"""Nothing in a request leads out of the data roots, to the hub, to a model that is not registered, or to code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.admission import admit
from core.errors import Problem, SpecError
from core.spec.base import FILE_PATH
from core.spec.job import JobSpec, parse
from core.spec.metrics import SETS
from core.spec.sources import HUB_ID

MODEL = "mdl_" + "0" * 26
UPLOAD = {"source": "upload", "dataset": "ds_" + "0" * 26}
OTHER = {"source": "upload", "dataset": "ds_" + "1" * 26}
REVISION = "0" * 40
# Field to the part of a request that puts a value there.
PATHS: dict[str, Any] = {
    "model.path": lambda path: {"model": {"path": path}},
    "method.base.path": lambda path: {
        "method": {"name": "retrain", "base": {"path": path}},
        "data": {"retain": OTHER},
    },
    "method.refusals_file": lambda path: {"method": {"name": "refusal", "refusals_file": path}},
    "evaluation.retrained.model.path": lambda path: {"evaluation": {"retrained": {"model": {"path": path}}}},
    "evaluation.retrained.rows": lambda path: {"evaluation": {"retrained": {"rows": path}}},
    "evaluation.reference.path": lambda path: {"evaluation": {"reference": {"path": path}}},
    "evaluation.embedder.path": lambda path: {"evaluation": {"embedder": path}},
    "evaluation.classifier.path": lambda path: {"evaluation": {"classifier": {"path": path}}},
    "evaluation.lm_eval.include_path": lambda path: {"evaluation": {"lm_eval": {"tasks": ["x"], "include_path": path}}},
    **{
        f"data.{name}.path": lambda path, name=name: {"data": {name: {"source": "jsonl", "path": path}}}
        for name in SETS
    },
}
HUBS: dict[str, Any] = {
    "evaluation.embedder.hub": lambda hub: {"evaluation": {"embedder": {"hub": hub, "revision": REVISION}}},
    "evaluation.classifier.hub": lambda hub: {"evaluation": {"classifier": {"hub": hub, "revision": REVISION}}},
    **{
        f"data.{name}.hub": lambda hub, name=name: {
            "data": {name: {"source": "tofu", "hub": hub, "revision": REVISION, "split": "forget01"}}
        }
        for name in SETS
    },
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The one data root."""
    folder = tmp_path.resolve() / "data"
    folder.mkdir()
    return folder


def asked(*parts: dict[str, Any]) -> JobSpec:
    """A request for registered things, with these parts put over it."""
    request: dict[str, Any] = {"model": MODEL, "method": "GA", "data": {"forget": UPLOAD}, "evaluation": {}}
    for part in parts:
        for name, value in part.items():
            request[name] = {**request[name], **value} if name in ("data", "evaluation") else value
    return parse(request)


def refused(spec: JobSpec, root: Path) -> list[Problem]:
    with pytest.raises(SpecError) as raised:
        admit(spec, [root])
    return list(raised.value.problems)


def fields(schema: dict[str, Any], whole: dict[str, Any], pattern: str) -> Iterator[str]:
    """Names of the fields of a JSON schema that hold a text of this pattern, through every union."""
    if reference := schema.get("$ref"):
        yield from fields(whole["$defs"][reference.removeprefix("#/$defs/")], whole, pattern)
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from fields(choice, whole, pattern)
    for name, inner in schema.get("properties", {}).items():
        yield from (f"{name}{rest}" if rest == "" else f"{name}.{rest}" for rest in fields(inner, whole, pattern))
    if schema.get("pattern") == pattern:
        yield ""


def test_these_are_all_the_places_that_a_request_can_name() -> None:
    whole = JobSpec.model_json_schema()
    assert set(fields(whole, whole, FILE_PATH)) == PATHS.keys()
    assert set(fields(whole, whole, HUB_ID)) == HUBS.keys()


@pytest.mark.parametrize("field", PATHS)
def test_no_path_leads_out_of_the_roots(field: str, root: Path) -> None:
    (root.parent / "outside").mkdir()
    (root / "way-out").symlink_to(root.parent / "outside")
    for path in (f"{root.parent}/outside", f"{root}/../outside", f"{root}/way-out", "relative"):
        (problem,) = refused(asked(PATHS[field](path)), root)
        assert problem.param == field
        assert any(said in problem.message for said in ("not open to requests", "POST /models", "can run code"))


@pytest.mark.parametrize("field", HUBS)
def test_nothing_is_fetched_from_the_hub(field: str, root: Path) -> None:
    (problem,) = refused(asked(HUBS[field]("somebody/something")), root)
    assert (problem.param, problem.value) == (field, "somebody/something")
    assert "fetches nothing from the hub" in problem.message


def test_every_set_and_folder_is_taken_without_its_links(root: Path) -> None:
    (root / "judge").mkdir()
    (root / "judge" / "config.json").write_text("{}")
    (root / "link").symlink_to(root / "judge")
    for name in SETS:
        (root / f"{name}.jsonl").write_text('{"text": "t"}\n')
        (root / f"{name}.link").symlink_to(root / f"{name}.jsonl")
    sets = [PATHS[f"data.{name}.path"](f"{root}/{name}.link") for name in SETS]
    folders = ("evaluation.retrained.rows", "evaluation.embedder.path", "evaluation.classifier.path")
    spec = admit(asked(*sets, *(PATHS[field](f"{root}/link") for field in folders)), [root])
    assert {name: source.path for name, source in spec.data.sources().items() if source.source == "jsonl"} == {
        name: f"{root}/{name}.jsonl" for name in SETS
    }
    evaluation = spec.evaluation
    assert evaluation.retrained
    assert evaluation.embedder
    assert evaluation.classifier
    found = {evaluation.retrained.rows, evaluation.embedder.path, evaluation.classifier.path}
    assert found == {f"{root}/judge"}


@pytest.mark.parametrize("name", ["retain", "holdout"])
def test_a_set_is_known_again_under_another_spelling_of_its_path(name: str, root: Path) -> None:
    (root / "rows.jsonl").write_text('{"text": "t"}\n')
    (root / "link.jsonl").symlink_to(root / "rows.jsonl")
    forget = PATHS["data.forget.path"](f"{root}/rows.jsonl")
    for spelling in (f"{root}/./rows.jsonl", f"{root}/link.jsonl"):
        (problem,) = refused(asked(forget, PATHS[f"data.{name}.path"](spelling)), root)
        assert (problem.param, problem.value) == (f"data.{name}", spelling)
        assert f"{name} is the very set to forget" in problem.message


@pytest.mark.parametrize(
    "field", ["evaluation.retrained.rows", "evaluation.embedder.path", "evaluation.classifier.path"]
)
def test_a_folder_must_be_one_and_hold_its_own_files(field: str, root: Path) -> None:
    (root.parent / "secret").write_text("s")
    for name in ("out", "to-folder", "loop", "many", "good"):
        (root / name / "inner").mkdir(parents=True)
    (root / "out" / "inner" / "x").symlink_to(root.parent / "secret")
    (root / "to-folder" / "x").symlink_to(root / "out")
    (root / "loop" / "x").symlink_to(root / "loop" / "x")
    for i in range(1001):
        (root / "many" / str(i)).touch()
    (root / "file").touch()
    (root / "good" / "inner" / "x").symlink_to(root / "file")
    for name, said in (
        ("none", "There is no folder"),
        ("file", "There is no folder"),
        ("x" * 300, "folder|cannot be read"),
        ("out", "leads elsewhere"),
        ("to-folder", "leads elsewhere"),
        ("loop", "leads elsewhere"),
        ("many", "more than 1000 files"),
    ):
        (problem,) = refused(asked(PATHS[field](f"{root}/{name}")), root)
        assert problem.param == field
        assert any(part in problem.message for part in said.split("|"))
        assert "secret" not in problem.message
    admit(asked(PATHS[field](f"{root}/good")), [root])


def test_tasks_are_taken_by_name_and_never_from_files(root: Path) -> None:
    (root / "tasks").mkdir()
    admit(asked({"evaluation": {"lm_eval": {"tasks": ["arc_easy", "wikitext"]}}}), [root])
    tasks = ["arc_easy", "core/../../data/tasks/own.yaml"]
    given = {"evaluation": {"lm_eval": {"tasks": tasks, "include_path": f"{root}/tasks"}}}
    problems = refused(asked(given), root)
    assert [p.param for p in problems] == ["evaluation.lm_eval.tasks.1", "evaluation.lm_eval.include_path"]
    assert all("can run code" in p.message for p in problems)


def test_all_problems_are_told_at_once(root: Path) -> None:
    excluding_others = ("method.refusals_file", "evaluation.retrained.model.path")
    parts = [make(f"/elsewhere/{field}") for field, make in PATHS.items() if field not in excluding_others]
    problems = refused(asked(*parts), root)
    assert sorted(p.param for p in problems) == sorted(PATHS.keys() - set(excluding_others))
    assert all(p.value == f"/elsewhere/{p.param}" for p in problems)
