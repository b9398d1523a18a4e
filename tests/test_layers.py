"""Who may import whom: checked on what a fresh interpreter has loaded, and on the source, where an import hidden in a
function counts too."""

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("api", "core", "worker", "migrations")


class Layer(NamedTuple):
    packages: tuple[str, ...]
    may: tuple[str, ...]  # of ours, beside its own packages
    never: tuple[str, ...]  # of others
    apart: tuple[str, ...] = ()  # sub-packages that are a layer of their own


LIGHT = ("core.spec", "core.errors", "core.report")
LAYERS = {
    "core": Layer(("core",), (), ("sqlalchemy", "fastapi", "celery"), apart=LIGHT),
    "core, light": Layer(LIGHT, (), ("sqlalchemy", "fastapi", "celery", "torch", "transformers")),
    "api.store": Layer(("api.store",), ("core.spec", "core.errors"), ("fastapi", "torch", "transformers")),
    "api": Layer(("api",), LIGHT, ("torch", "transformers"), apart=("api.store",)),
    "worker": Layer(("worker",), ("core", "api.store"), ("fastapi",)),
    "migrations": Layer(("migrations",), ("api.store",), ("fastapi", "torch", "transformers")),
}

IMPORT = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
# env.py and the versions are no modules: Alembic runs them, so Alembic is asked to.
MIGRATE = "from alembic import command, config\ncommand.upgrade(config.Config('migrations/alembic.ini'), 'head')\n"
TELL = "import json, sys\nprint(json.dumps({name: getattr(m, '__file__', None) for name, m in sys.modules.items()}))"


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def sources(layer: Layer) -> dict[str, Path]:
    """Module name -> file, for every file of the layer's packages."""
    found = {}
    for package in layer.packages:
        path = ROOT.joinpath(*package.split("."))
        for file in [path.with_suffix(".py")] if path.with_suffix(".py").exists() else sorted(path.rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if not within(module, layer.apart):
                found[module] = file
    return found


def loaded(script: str, arguments: list[str], folder: Path) -> dict[str, str | None]:
    """Module name -> file, of everything in a fresh interpreter after it ran `script` from the repository's root."""
    env = {  # Celery and Alembic want their settings while they are imported
        "LETHE_DATABASE_URL": f"sqlite:///{folder}/lethe.db",
        "LETHE_BROKER_URL": f"redis+socket://{folder}/redis.sock",
        "LETHE_ARTIFACTS_URL": f"file://{folder}/artifacts",
        "LETHE_MASTER_KEY": "the master key of an interpreter that only imports",
        "LETHE_WORK_DIR": f"{folder}/work",
        "LETHE_SIGNING_KEY_FILE": f"{folder}/signing-key.pem",
    }
    run = subprocess.run(
        [sys.executable, "-c", script + TELL, *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    modules: dict[str, str | None] = json.loads(run.stdout.splitlines()[-1])
    return modules


def imports(file: Path) -> Iterator[tuple[str, ...]]:
    """For every import statement: the names it may stand for (`from a import b` is `a` or `a.b`)."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = ".".join(file.relative_to(ROOT).parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (parents, node.module)))
            yield from ((module, f"{module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_loads_only_what_it_may(name: str, tmp_path: Path) -> None:
    layer = LAYERS[name]
    modules = sources(layer)
    assert modules
    if name == "migrations":
        after = loaded(MIGRATE, [], tmp_path)
    else:
        after = loaded(IMPORT, list(modules), tmp_path)
        assert {module: after[module] for module in modules} == {module: str(file) for module, file in modules.items()}
    lent = tuple(package for other in LAYERS.values() if within(other.packages[0], layer.may) for package in other.may)
    allowed = layer.packages + layer.may + lent
    parents = {package.rpartition(".")[0] for package in allowed}
    ours = {module for module in after if within(module, OURS)}
    assert {module for module in ours - parents if not within(module, allowed)} == set()
    assert {module for module in after if within(module, layer.never)} == set()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_names_only_what_it_may(name: str) -> None:
    layer = LAYERS[name]
    allowed = layer.packages + layer.may
    wrong = [
        f"{file.relative_to(ROOT)}: {meant[-1]}"
        for file in sources(layer).values()
        for meant in imports(file)
        if within(meant[0], layer.never)
        or (within(meant[0], OURS) and not any(within(module, allowed) for module in meant))
    ]
    assert wrong == []


def strangers() -> set[str]:
    """Installed distributions other than Lethe that bring a top-level package of one of our names."""
    claims = importlib.metadata.packages_distributions()
    return {distribution for name in OURS for distribution in claims.get(name, [])} - {"lethe"}


def test_nobody_else_claims_our_package_names() -> None:
    assert strangers() == set()


def test_a_claim_on_our_package_names_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("worker\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert strangers() == {"other"}
