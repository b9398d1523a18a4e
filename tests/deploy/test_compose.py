"""docker-compose.yml against the compose specification's own schema, and against what Lethe promises of it."""

import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url

from api.settings import Settings
from api.store.settings import DatabaseSettings, load
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
ONE_SHOT = {"migrate"}
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|AUTH")
ASKED_FOR = re.compile(r"\$\{[A-Z_]+:\?[^}]+\}")  # compose stops where the variable is unset or empty


def schema_check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def instructions(dockerfile: Path, name: str) -> list[str]:
    """Arguments of every `name` instruction, continuation lines joined."""
    text = re.sub(r"\\\n\s*", " ", dockerfile.read_text())
    return re.findall(rf"^{name}\s+(.*)$", text, flags=re.MULTILINE)


def passwords_given(text: str) -> list[str]:
    """Every value in a compose text that would serve as a secret without anybody having chosen it."""
    found = []
    for name, value in re.findall(r"^\s*([A-Z_]+): *(.*?)(?: +#.*)?$", text, flags=re.MULTILINE):
        if SECRET_NAME.search(name) and not name.endswith("_FILE") and not ASKED_FOR.fullmatch(value):
            found.append(f"{name}: {value}")
    found += re.findall(r"--requirepass[\", ]++(?!\$\{[A-Z_]+:\?)\S+", text)
    found += re.findall(r"://[^/\s:]*:(?!\$\{[A-Z_]+:\?)[^@/\s]+@", text)
    found += [name for name in re.findall(r"\$\{([A-Z_]+)(?::?-|\})", text) if SECRET_NAME.search(name)]
    return found


def test_schema_accepts_the_file() -> None:
    result = schema_check(COMPOSE)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("capabilities: [gpu]", "capability: [gpu]"),
        ("service_completed_successfully", "service_completed"),
        ("internal: true", "internal: {yes: 1}"),
    ],
)
def test_schema_rejects_a_broken_file(tmp_path: Path, right: str, wrong: str) -> None:
    text = COMPOSE.read_text()
    assert right in text
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(text.replace(right, wrong))
    result = schema_check(broken)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Schema validation errors" in result.stdout + result.stderr


def test_no_secret_has_a_default() -> None:
    assert passwords_given(COMPOSE.read_text()) == []
    example = (ROOT / "docker" / ".env.example").read_text()
    set_there = re.findall(r"^([A-Z_]+)=(.+)$", example, flags=re.MULTILINE)
    assert set_there == []
    for dockerfile in DOCKERFILES:
        assert not any(SECRET_NAME.search(line) for kind in ("ENV", "ARG") for line in instructions(dockerfile, kind))


@pytest.mark.parametrize(
    "line",
    [
        "      POSTGRES_PASSWORD: postgres",
        "      LETHE_KEY_SECRET: ${LETHE_KEY_SECRET:-change-me}",
        "      LETHE_BROKER_URL: redis://:hunter2@redis:6379/0",
        "      LETHE_DATABASE_URL: postgresql+psycopg://lethe:${POSTGRES_PASSWORD}@postgres/lethe",
        '    command: ["redis-server", "--requirepass", "redis"]',
    ],
)
def test_a_default_secret_would_be_seen(line: str) -> None:
    assert passwords_given(line)


def test_the_example_names_every_variable_that_compose_asks_for() -> None:
    asked = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text()))
    named = set(re.findall(r"^(?:# )?([A-Z_]+)=", (ROOT / "docker" / ".env.example").read_text(), flags=re.MULTILINE))
    assert asked == named


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONE_SHOT))
def test_every_long_running_service_has_a_health_check(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    check = service["healthcheck"]
    if "test" not in check:
        assert instructions(ROOT / service["build"]["dockerfile"], "HEALTHCHECK")
    assert {"interval", "timeout", "retries"} <= check.keys()
    assert "disable" not in check


def test_services_wait_for_what_they_need() -> None:
    ready = {"postgres": "service_healthy", "redis": "service_healthy", "migrate": "service_completed_successfully"}
    for name in ("api", "worker"):
        assert {of: need["condition"] for of, need in SERVICES[name]["depends_on"].items()} == ready
    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES["migrate"]["command"][-2:] == ["upgrade", "head"]


def test_only_the_worker_reserves_a_gpu() -> None:
    (device,) = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert [name for name, service in SERVICES.items() if "deploy" in service] == ["worker"]


def test_only_the_api_is_published_and_on_loopback() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["api"]
    assert SERVICES["api"]["ports"] == ["${LETHE_BIND:-127.0.0.1}:${LETHE_PORT:-8000}:8000"]
    assert yaml.safe_load(COMPOSE.read_text())["networks"]["internal"] == {"internal": True}
    for name, service in SERVICES.items():
        assert service["networks"] == (["front", "internal"] if name == "api" else ["internal"])


def test_each_secret_reaches_only_the_service_that_uses_it() -> None:
    holders = {
        secret: {name for name, service in SERVICES.items() if secret in service.get("environment", {})}
        for secret in ("LETHE_KEY_SECRET", "LETHE_MASTER_KEY", "LETHE_SIGNING_KEY_FILE")
    }
    assert holders == {
        "LETHE_KEY_SECRET": {"api"},
        "LETHE_MASTER_KEY": {"api", "worker"},
        "LETHE_SIGNING_KEY_FILE": {"worker"},
    }
    assert [name for name, service in SERVICES.items() if "secrets" in service] == ["worker"]


@pytest.mark.parametrize(
    ("name", "kind"), [("api", Settings), ("worker", WorkerSettings), ("migrate", DatabaseSettings)]
)
def test_each_service_is_told_what_its_settings_need_and_nothing_else(
    name: str, kind: type[DatabaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = SERVICES[name]["environment"]
    own = {variable for variable in given if variable.startswith("LETHE_")}
    assert {variable.removeprefix("LETHE_").lower() for variable in own} <= kind.model_fields.keys()
    assert given.keys() - own == ({"FORWARDED_ALLOW_IPS"} if name == "api" else set())
    for variable, value in given.items():
        monkeypatch.setenv(variable, ASKED_FOR.sub(sha256(variable.encode()).hexdigest(), value))
    make_url(load(kind).database_url).get_dialect()


def test_api_and_worker_share_the_artifacts() -> None:
    mounted = [set(SERVICES[name]["volumes"]) for name in ("api", "worker")]
    assert "artifacts:/var/lib/lethe/artifacts" in mounted[0] & mounted[1]


def test_the_images_that_are_built_have_their_dockerfile() -> None:
    built = {ROOT / service["build"]["dockerfile"] for service in SERVICES.values() if "build" in service}
    assert built == set(DOCKERFILES)
    assert built


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_gets_the_files_it_names_and_runs_without_root(dockerfile: Path) -> None:
    let_in = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE))
    sources = [source for line in instructions(dockerfile, "COPY") for source in line.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), f"COPY {source}: no such file"
        assert Path(source).parts[0] in let_in, f"COPY {source}: .dockerignore keeps it out"
    (user,) = instructions(dockerfile, "USER")
    assert user not in {"root", "0"}
    (workdir,) = instructions(dockerfile, "WORKDIR")
    assert f"PYTHONPATH={workdir}" in " ".join(instructions(dockerfile, "ENV"))
    assert len(instructions(dockerfile, "HEALTHCHECK")) == 1
