"""What the documents say is so: the README's tree, the settings' table, the engine's choices."""

import re
import subprocess
from pathlib import Path

import pytest

from api.settings import Settings
from core.methods import METHODS
from core.methods.retain import RETAIN_TERMS as LOSSES
from core.spec.methods import ALIASES, FORGET_TERMS
from core.spec.optimizers import OPTIMIZERS
from core.spec.retain import RETAIN_TERMS, SCHEDULES
from core.spec.table import methods_table
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[1]


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


@pytest.mark.parametrize("name", [*FORGET_TERMS, *RETAIN_TERMS, *SCHEDULES, *ALIASES, *OPTIMIZERS])
def test_every_choice_is_in_the_engine_guide(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "engine.md").read_text()
