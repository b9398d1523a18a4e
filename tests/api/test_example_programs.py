"""The programs under examples/ as somebody meets them who copies one: what is missing or wrong is said, not traced."""

import base64
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from standardwebhooks import Webhook

from tests.api.parts import RECORDS, ROOT, ApiProcess, model_folder, settings_for

EXAMPLES = ROOT / "examples"
NOBODY = "http://127.0.0.1:1"
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"a secret of the tests alone").decode()


def example(name: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("LETHE_", "WEBHOOK_"))}
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        env=ours | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


WITH_KEY = {"LETHE_API_KEY": "lethe_x"}
MISUSED: list[tuple[str, dict[str, str]]] = [
    ("forget.py a b", WITH_KEY),
    ("forget.py a b c d", {}),
    ("four_eyes.py aprove job_1", WITH_KEY),
    ("four_eyes.py reject job_1", WITH_KEY),
    ("four_eyes.py", {}),
    ("webhook.py 9000", {}),
    ("webhook.py port", {"WEBHOOK_SECRET": WEBHOOK_SECRET}),
]


@pytest.mark.parametrize(("called", "environment"), MISUSED)
def test_one_that_is_called_wrongly_says_how_it_is_called(called: str, environment: dict[str, str]) -> None:
    name, *arguments = called.split()
    ended = example(name, *arguments, **environment)
    assert ended.returncode == 1
    assert f"python examples/{name}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_service_that_is_away_is_one_line(tmp_path: Path) -> None:
    away = WITH_KEY | {"LETHE_URL": NOBODY}
    for ended in (example("four_eyes.py", **away), example("forget.py", *[tmp_path] * 4, **away)):
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
        assert ended.stderr.startswith(f"{NOBODY} does not answer")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_the_service_refuses_is_said(database_url: str, tmp_path: Path, key: str) -> None:
    model, good, bad = model_folder(tmp_path / "models"), tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_bytes(RECORDS)
    bad.write_bytes(RECORDS + b'{"question": "and the answer?"}\n')
    with ApiProcess(settings_for(database_url, tmp_path), tmp_path) as api:
        told = {"LETHE_URL": api.url, "LETHE_API_KEY": key}
        missing = example("forget.py", model, tmp_path / "no.jsonl", good, tmp_path, **told)
        assert missing.stderr == f"{tmp_path / 'no.jsonl'}: No such file or directory\n"
        ended = example("forget.py", model, bad, good, tmp_path, **told)
        assert ended.returncode == 1
        assert "\n  line 5: field 'answer' is missing\n" in ended.stderr
        assert example("four_eyes.py", "approve", "job_1", **told).stderr.startswith("404 not_found: ")
        assert example("four_eyes.py", **told).returncode == 0


def test_the_receiver_believes_what_is_signed_alone() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    body, sent_at = '{"type": "job.late", "timestamp": "now", "data": {}}', datetime.now(UTC)
    signature = Webhook(WEBHOOK_SECRET).sign("msg_1", sent_at, body)
    right = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": signature,
    }
    wrong = [{}, *({**right, name: "?"} for name in right), right | {"webhook-signature": "v1,?"}]
    with subprocess.Popen(
        [sys.executable, EXAMPLES / "webhook.py", str(port)],
        env=os.environ | {"WEBHOOK_SECRET": WEBHOOK_SECRET}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as receiver:  # fmt: skip
        try:
            answers = [delivered(port, body, headers) for headers in (*wrong, right, right)]
        finally:
            receiver.terminate()
        told, errors = receiver.communicate()
    assert answers == [401] * len(wrong) + [204, 204]
    assert (told, errors) == ("now job.late {}\n", "")


def delivered(port: int, body: str, headers: dict[str, str]) -> int:
    deadline = time.monotonic() + 20
    while True:
        try:
            return httpx.post(f"http://127.0.0.1:{port}", content=body, headers=headers).status_code
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
