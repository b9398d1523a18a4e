"""What the documents say is so: the README's tree, the settings' table, the engine's choices, what is measured."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from api.cli import app
from api.settings import Settings
from core.methods import METHODS
from core.methods.retain import RETAIN_TERMS as LOSSES
from core.spec import job, series
from core.spec.attacks import ATTACK_LABELS, ATTACKS
from core.spec.gates import Gate
from core.spec.methods import ALIASES, FORGET_TERMS
from core.spec.metrics import METRICS, OF_ATTACKS, SETS
from core.spec.optimizers import OPTIMIZERS
from core.spec.profiles import PROFILES
from core.spec.retain import RETAIN_TERMS, SCHEDULES
from core.spec.sources import SOURCES
from core.spec.table import methods_table
from core.spec.training import StopWhen
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[1]
EVALUATION = (ROOT / "docs" / "evaluation.md").read_text()
GUIDES = ("evaluation.md", "engine.md")
ARROWS = {"lower": "↓", "higher": "↑"}


def _tree() -> set[str]:
    """The paths of the README's tree."""
    block = re.search(r"## The tree\n+```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block
    paths, folders = set(), [""]
    for line in block[1].splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[: depth + 1], folders[depth] + name]
        paths.add(folders[depth] + name)
    return paths


def test_the_tree_shows_every_file_once_with_a_comment() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    files = {f for f in listed if f.split("/")[0] in ("api", "core", "worker", "migrations") and "__init__" not in f}
    assert {path for path in _tree() if path.endswith(".py")} == {f for f in files if (ROOT / f).exists()}


def test_every_setting_is_in_the_service_guide() -> None:
    text = (ROOT / "docs" / "service.md").read_text()
    for settings in (Settings, WorkerSettings):
        for name, field in settings.model_fields.items():
            assert field.description, name
            assert f"| `LETHE_{name.upper()}` |" in text


def test_every_variable_that_the_code_names_is_in_the_service_guide() -> None:
    text = (ROOT / "docs" / "service.md").read_text()
    sources = [file for part in ("api", "core", "worker", "migrations") for file in (ROOT / part).rglob("*.py")]
    named = {name for file in sources for name in re.findall(r"\bLETHE_[A-Z_]*[A-Z]\b", file.read_text())}
    assert {"LETHE_MASTER_KEY", "LETHE_URL"} <= named
    assert [name for name in sorted(named) if f"| `{name}` |" not in text] == []


def test_every_metric_is_in_the_service_guide() -> None:
    text = (ROOT / "docs" / "service.md").read_text()
    sources = [ROOT / "api" / "meter.py", ROOT / "worker" / "meter.py"]
    named = {name for file in sources for name in re.findall(r'"(lethe_\w+)"', file.read_text())}
    assert len(named) > 12
    assert [name for name in sorted(named) if f"`{name}" not in text] == []


def test_every_command_is_in_the_guide_of_the_command_line_as_it_is() -> None:
    told = [line for line in (ROOT / "docs" / "cli.md").read_text().splitlines() if line.startswith("| `lethe ")]
    assert sorted(told) == sorted(_commands(typer.main.get_command(app), "lethe"))


def _commands(command: Any, path: str) -> Iterator[str]:
    """A row of the guide for each command below this one: what it must be given, what it may, and its help."""
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from _commands(below, f"{path} {name}")
        return
    given = [one.metavar or one.name.upper() for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    given += [f"{one.opts[0]} {one.opts[0].strip('-').upper()}" for one in options if one.required]
    free = [one.opts[0] for one in options if not one.required]
    beside = ", ".join(f"`{name}`" for name in free if name not in ("--url", "--api-key", "--json"))
    said = " ".join(command.help.split("\n\n")[0].split())
    yield f"| `{' '.join([path, *given])}` | {beside} | {said} |"


def test_the_readmes_tables_are_the_methods() -> None:
    text = (ROOT / "README.md").read_text()
    rows = methods_table()
    assert [row["name"] for row in rows] == [*METHODS, *LOSSES]
    for kind, title in (("method", "method"), ("retain", "retain term")):
        told = re.search(rf"\| {title} \| what it does \| source \|\n\|---\|---\|---\|\n(.*?)\n\n", text, re.DOTALL)
        assert told
        assert told[1].splitlines() == [
            f"| `{row['name']}` | {escaped(row['summary'])} | {row['source'] or ''} |"
            for row in rows
            if row["kind"] == kind
        ]


def escaped(text: str) -> str:
    """As a cell of a table may hold it."""
    return text.replace("|", r"\|")


@pytest.mark.parametrize(
    "name", [*FORGET_TERMS, *RETAIN_TERMS, *SCHEDULES, *ALIASES, *OPTIMIZERS, *SOURCES, *SETS, *PROFILES]
)
def test_every_choice_is_in_the_engine_guide(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "engine.md").read_text()


def table(head: str, within: str = EVALUATION) -> list[list[str]]:
    """The cells of the rows of the one table that has this head."""
    found = re.findall(rf"^\| {re.escape(head)} \|\n\|[-|]+\|\n((?:\|.*\n)+)", within, re.MULTILINE)
    assert len(found) == 1, head
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found[0].splitlines()]
    assert all(len(row) == head.count("|") + 1 for row in rows)
    return rows


def section(title: str) -> str:
    """What stands under one heading."""
    return EVALUATION.split(f"# {title}\n")[1].split("\n#")[0]


def code(cell: str) -> str:
    """What a cell holds in code."""
    found = re.fullmatch(r"`([^`]+)`", cell)
    assert found, cell
    return found[1]


def test_the_evaluation_guides_tables_are_the_metrics() -> None:
    told: dict[str, tuple[str, str, str]] = {}

    def tell(name: str, *about: str) -> None:
        assert name not in told
        told[name] = (about[0], about[1], about[2])

    for name, of, meaning, _, source in table("metric | of | what it is | a row counts if it has | source"):
        for split, arrow in (each.rsplit(" ", 1) for each in of.split(", ")):
            tell(f"{code(split)}.{code(name)}", arrow, meaning, source)
    for named, meaning, _, source in table("over several sets | what it is | absent | source"):
        name, arrow = named.rsplit(" ", 1)
        tell(code(name), arrow, meaning, source)
    for score, title, _, source in table("score | what it is | needs | source"):
        for named, meaning, _ in table("measure | what it is | absent"):
            measure, arrow = named.rsplit(" ", 1)
            name = f"membership.{code(score)}{code(measure)}"
            tell(name, arrow, meaning, source)
            assert METRICS[name].title.rpartition(": ")[0] == title
    known = {name: m for name, m in METRICS.items() if name.partition(".")[0] not in ATTACK_LABELS}
    assert told == {name: (ARROWS[m.better], escaped(m.meaning), m.citation) for name, m in known.items()}


def test_the_evaluation_guide_names_every_set() -> None:
    assert {code(name): what for name, what in table("`data` | what it is")} == SETS


def defaults(spec: Any) -> list[str]:
    """A spec's fields with their defaults, as the guide writes them."""
    return [f"`{name}` {field.default}" for name, field in spec.model_fields.items() if name != "name"]


def test_the_evaluation_guide_has_every_attack_with_its_defaults() -> None:
    rows = table("attack | what it does | defaults | what is scored | absent | source")
    assert [(code(name), told, source) for name, _, told, _, _, source in rows] == [
        (name, ", ".join(defaults(spec)) or "none", spec.citation) for name, spec in ATTACKS.items()
    ]
    text = section("Attacks")
    assert all(f"`{label}`" in text for label in ATTACK_LABELS)
    assert all(f".{metric}`" in text for metric in OF_ATTACKS)


@pytest.mark.parametrize("name", PROFILES)
def test_the_evaluation_guide_has_every_profiles_gates_and_attacks(name: str) -> None:
    text, profile = section(name), PROFILES[name]
    assert text.strip().startswith(profile.title)
    gates = [code(gate) for gate, _ in table("gate | why", text)]
    assert gates == [Gate.model_validate(gate).describe() for gate in profile.gates]
    assert f"Attacks: `{json.dumps(list(profile.attacks))[1:-1]}`" in text


def test_the_evaluation_guide_has_the_fields_of_stop_when() -> None:
    told = {code(name): (default, what) for name, default, what in table("field | default | what it is")}
    fields = {name: (json.dumps(field.default), field.description) for name, field in StopWhen.model_fields.items()}
    assert told == fields


def requests(guide: str) -> list[Any]:
    """Every request that a guide shows whole: an indented block that begins and ends with a brace of its own."""
    blocks = re.findall(r"^    \{\n(?:     .*\n)+    \}$", (ROOT / "docs" / guide).read_text(), re.MULTILINE)
    return [json.loads(block) for block in blocks]


def test_every_request_in_the_guides_is_accepted() -> None:
    shown = [request for guide in GUIDES for request in requests(guide)]
    assert [request.get("series") for request in shown] == [None, None, None, None, "sustainability"]
    for request in shown:
        read = series.parse if "series" in request else job.parse
        read(request)


def test_the_gates_in_the_evaluation_guide_are_gates() -> None:
    lines = re.findall(r"^    (\{\"metric\": .*\})$", EVALUATION, re.MULTILINE)
    assert [Gate.model_validate_json(line).describe() for line in lines] == [
        "forget.rouge_l <= 0.3",
        "forget.probability / holdout <= 1.5",
        "retain.probability / before >= 0.95",
        "0.4 <= membership.min_k.auc <= 0.6",
    ]


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", *(f"docs/{guide}" for guide in GUIDES)])
def test_links_within_the_documents_lead_somewhere(file: str) -> None:
    here = ROOT / file
    for target in re.findall(r"\]\(\s*([^)\s]+)\)", here.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        document = here.parent / path if path else here
        assert document.exists(), target
        titles = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not anchor or anchor in anchors, target
