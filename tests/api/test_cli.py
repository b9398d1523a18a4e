"""The command line, as processes: quick help, keys, verification with its exit codes, and `run` becoming the engine."""

import json
import os
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from api.store import audit, chain, keys
from api.store.session import open_database
from core.report.digest import file_digests, model_digest
from core.report.heads import sign_head
from core.report.schema import Absent, DataUsed, Environment, Report, TrainingDone
from core.report.sign import new_key, public_pem, sign
from core.report.verdict import judge
from core.spec.job import parse
from tests.api.parts import ROOT, SECRET


def lethe(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "api.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_is_there_at_once() -> None:
    began = time.monotonic()
    shown = lethe("--help")
    assert time.monotonic() - began < 1.5
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in ("run", "verify", "keys"))
    imports = [sys.executable, "-c", "import api.cli, sys; print(*sys.modules)"]
    loaded = subprocess.run(imports, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {"sqlalchemy", "fastapi", "cryptography", "torch"} & set(loaded)


def test_keys_are_made_listed_and_revoked(sqlite_url: str) -> None:
    service = {"LETHE_DATABASE_URL": sqlite_url, "LETHE_KEY_SECRET": SECRET}
    made = json.loads(lethe("keys", "create", "ada", "--days", "3", "--json", **service).stdout)
    scoped = ("--principal", "Bob", "--scope", "jobs:read", "--scope", "jobs:write")
    text = lethe("keys", "create", "intake", *scoped, **service).stdout.strip()
    database = open_database(sqlite_url)
    ada, bob = (keys.verify(database, key, SECRET.encode()) for key in (made["key"], text))
    assert ada is not None
    assert bob is not None
    assert (ada.id, ada.name, ada.scopes) == (made["id"], "ada", ["admin"])
    assert (bob.name, bob.scopes) == ("intake", ["jobs:read", "jobs:write"])
    assert ada.expires_at is not None
    assert bob.expires_at is None
    assert abs(ada.expires_at - ada.created_at - timedelta(days=3)) < timedelta(minutes=1)
    assert lethe("keys", "revoke", bob.id, **service).returncode == 0
    assert keys.verify(database, text, SECRET.encode()) is None
    listed = [json.loads(line) for line in lethe("keys", "list", "--json", **service).stdout.splitlines()]
    assert [(key["principal_name"], "revoked_at" in key) for key in listed] == [("Bob", True), ("ada", False)]
    assert all(key["last_used_at"] for key in listed)
    shown = lethe("keys", "list", **service).stdout
    assert made["key"] not in shown
    assert text not in shown
    unknown = lethe("keys", "revoke", "key_00000000", **service)
    assert (unknown.returncode, "no API key" in unknown.stderr) == (2, True)
    wrong = lethe("keys", "create", "x", "--scope", "jobs:red", **service)
    assert wrong.returncode == 2
    assert "'jobs:red' is no scope. Did you mean 'jobs:read'? Allowed: admin," in wrong.stderr
    assert ada.principal_id in lethe("principals", "list", **service).stdout
    assert lethe("principals", "disable", ada.principal_id, **service).returncode == 0
    assert keys.verify(database, made["key"], SECRET.encode()) is None
    database.close()


def test_the_audit_log_is_listed_and_verified(sqlite_url: str, tmp_path: Path) -> None:
    service = {"LETHE_DATABASE_URL": sqlite_url}
    database, private = open_database(sqlite_url), new_key()
    (tmp_path / "key.pem").write_bytes(public_pem(private))
    (tmp_path / "other.pem").write_bytes(public_pem(new_key()))

    def signed(head: chain.Head, at: datetime) -> str:
        return sign_head(head.position, head.hash, at, private)

    with database.transaction() as session:
        for number in range(5):
            audit.append(session, actor="prn_a", action="thing.done", subject=f"job_{number}")
        assert chain.sign_head(session, chain.seal(session), signed)
    listed = [
        json.loads(line) for line in lethe("audit", "list", "--limit", "2", "--json", **service).stdout.splitlines()
    ]
    assert [(entry["subject"], entry["position"]) for entry in listed] == [("job_4", 5), ("job_3", 4)]
    assert "job_2" in lethe("audit", "list", "--subject", "job_2", **service).stdout
    none = lethe("audit", "list", "--action", "thing.dome", **service)
    assert (none.returncode, none.stderr) == (0, "There are none. Did you mean 'thing.done'? Allowed: thing.done.\n")
    assert lethe("audit", "list", "--subject", "job_9", **service).stderr == "There are none.\n"
    with_key = ("audit", "verify", "--key", f"{tmp_path}/key.pem")
    right = lethe(*with_key, **service)
    assert (right.returncode, right.stdout.splitlines()[-1]) == (0, "The audit log matches."), right.stderr
    assert "not checked, no --key" in lethe("audit", "verify", **service).stdout
    assert lethe("audit", "verify", "--key", f"{tmp_path}/other.pem", **service).returncode == 1
    with database.transaction() as session:
        session.execute(text("DROP TRIGGER audit_kept"))
        session.execute(text("DELETE FROM audit WHERE position = 3"))
    database.close()
    wrong = lethe(*with_key, **service)
    assert wrong.returncode == 1
    assert "FAILED Position 3 is missing." in wrong.stdout
    found = json.loads(lethe(*with_key, "--json", **service).stdout)
    assert (found["ok"], found["findings"][0]["kind"], found["signatures_checked"]) == (False, "missing", True)
    (tmp_path / "none.json").write_text("no report")
    no_report = lethe("audit", "verify", "--report", f"{tmp_path}/none.json", **service)
    assert no_report.stderr.startswith(f"lethe: {tmp_path}/none.json: ")
    unreadable = lethe("audit", "verify", "--report", f"{tmp_path}/no.json", "--json", **service)
    assert (unreadable.returncode, json.loads(unreadable.stdout)["ok"]) == (2, False)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LETHE_DATABASE_URL": "", "LETHE_KEY_SECRET": SECRET}, "not a URL"),
        ({"LETHE_DATABASE_URL": "sqlite:////nowhere/at/all.db", "LETHE_KEY_SECRET": SECRET}, "cannot be used"),
        ({"LETHE_DATABASE_URL": "sqlite:////x.db", "LETHE_KEY_SECRET": "hunter2"}, "LETHE_KEY_SECRET"),
    ],
)
def test_a_bad_setting_is_one_line(environment: dict[str, str], said: str) -> None:
    ended = lethe("keys", "list", **environment)
    assert ended.returncode == 2
    assert ended.stderr.startswith("lethe: ")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "hunter2" not in ended.stderr


def test_run_becomes_the_engine_even_beside_a_folder_named_core(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "__init__.py").write_text("raise SystemExit('not this one')")
    ended = lethe("run", "nothing.json", "--out", "out", cwd=tmp_path)
    assert ended.returncode == 2
    assert "nothing.json cannot be read" in ended.stdout
    assert lethe("run", "nothing.json").returncode == 2


def test_series_becomes_the_engines_command(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"series": "scale", "data": {"forget": []}}))
    ended = lethe("series", str(spec), "--out", str(tmp_path / "out"))
    assert ended.returncode == 2
    error = json.loads(ended.stdout)
    assert (error["event"], error["code"], error["param"]) == ("error", "invalid_spec", "series")
    assert "Allowed: scalability, sustainability." in error["message"]


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    """A folder with a model, the signed report on it, and the public key."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    files = file_digests(tmp_path / "model")
    spec = parse({"model": {"path": "m"}, "data": {"forget": {"source": "jsonl", "path": "f"}}, "method": "GA"})
    absent = Absent(absent="not in this test")
    report = Report(
        spec=spec.model_dump(mode="json"),
        spec_digest=spec.digest(),
        seed=0,
        started_at="2026-01-31T12:00:00Z",
        finished_at="2026-01-31T12:00:01Z",
        input_model="0" * 64,
        output_model=model_digest(files),
        output_files=files,
        forget=DataUsed(rows=1, answer_tokens=1, taken=[(0, 0)], too_long=[], commitment=absent, committed=absent),
        retain=absent,
        beside={},
        before={},
        after={},
        training=TrainingDone(
            steps=1,
            planned_steps=1,
            delivered_step=1,
            stopped_early=False,
            resumed_from=absent,
            seconds=1,
            seconds_to_first_step=1,
            final_loss=1,
            clip_fraction=absent,
            curve=[],
            looks=[],
        ),
        verdict=judge([], {}, {}),
        environment=Environment(
            python="3.11", platform="p", device="cpu", threads=1, memory_bytes=1, versions={}, network="n"
        ),
        limitations=[],
    )
    private = new_key()
    (tmp_path / "key.pem").write_bytes(public_pem(private))
    (tmp_path / "report.json").write_text(report.model_dump_json())
    (tmp_path / "report.dsse.json").write_bytes(sign(report, private))
    return tmp_path


def test_verify_tells_what_matches_and_what_does_not(evidence: Path) -> None:
    command = ("verify", f"{evidence}/report.json", "--model", f"{evidence}/model", "--key", f"{evidence}/key.pem")
    right = lethe(*command)
    assert right.returncode == 0, right.stdout + right.stderr
    assert right.stdout.endswith("The evidence matches.\n")
    assert "ok     model: model.safetensors\n" in right.stdout
    (evidence / "model" / "model.safetensors").write_bytes(b"Weights")
    wrong = lethe(*command)
    assert wrong.returncode == 1
    assert "FAILED model: model.safetensors was altered\n" in wrong.stdout
    as_json = lethe(*command, "--json")
    assert as_json.returncode == 1
    found = json.loads(as_json.stdout)
    assert not found["ok"]
    assert "model: model.safetensors was altered" in found["failures"]
    assert found["checked"]


def test_verify_names_a_key_that_is_none_and_says_what_a_private_one_lacks(evidence: Path) -> None:
    for content, said in ((b"{}", "is not a PEM file of one"), (new_key(), "openssl pkey")):
        (evidence / "other.pem").write_bytes(content)
        ended = lethe("verify", f"{evidence}/report.json", "--key", f"{evidence}/other.pem")
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"lethe: The public key {evidence}/other.pem is")
        assert said in ended.stderr


def test_verify_names_what_cannot_be_read(tmp_path: Path) -> None:
    missing = lethe("verify", str(tmp_path / "no.json"), "--key", str(tmp_path / "no.pem"))
    assert missing.returncode == 2
    assert missing.stderr.startswith("lethe: ")
    as_json = lethe("verify", str(tmp_path / "no.json"), "--key", str(tmp_path / "no.pem"), "--json")
    assert as_json.returncode == 2
    assert json.loads(as_json.stdout)["error"]["code"] == "unreadable_evidence"


def test_methods_prints_the_table_for_people_and_programs() -> None:
    shown, as_json = lethe("methods"), lethe("methods", "--json")
    assert (shown.returncode, as_json.returncode) == (0, 0)
    for row in json.loads(as_json.stdout):
        assert f"  {row['name']} " in shown.stdout
    assert "GA+KL (retain ce_ref)" in " ".join(shown.stdout.split())


def test_presets_are_printed_for_people_and_programs() -> None:
    shown, as_json = lethe("presets"), lethe("presets", "--json")
    names = [preset["name"] for preset in json.loads(as_json.stdout)]
    assert (shown.returncode, as_json.returncode) == (0, 0)
    assert "soul/tofu/GradDiff/second-order" in names
    assert set(names) <= set(shown.stdout.split())
