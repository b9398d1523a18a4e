"""`lethe up` as whoever starts it for the first time meets it: what keeps it from starting is said at once, and costs
nothing that the next start would need."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.api.parts import ROOT, bearer

pytestmark = pytest.mark.timeout(180)


def command(home: Path, port: int = 0) -> list[str]:
    return [sys.executable, "-m", "api.cli", "up", "--home", str(home), "--port", str(port)]


def refused(home: Path, port: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(home, port),
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_starts_that_failed_leave_the_first_key_to_the_one_that_does_not(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ended = refused(home, other.getsockname()[1])
    assert (ended.returncode, "cannot be listened on" in ended.stderr) == (1, True)
    assert [path.name for path in home.iterdir()] == ["in-use"]
    assert refused(home, LETHE_WEBHOOK_ALLOW="127.0.0.1").returncode == 2
    with subprocess.Popen(command(home), cwd=ROOT, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        told = ""
        for line in up.stdout:
            told += line
            if "Ctrl-C stops" in line:
                break
        url = re.search(r"http://[\d.:]+", told)
        key = re.search(r"lethe_\w+", told)
        assert url, told
        assert key, told
        assert httpx.get(f"{url[0]}/jobs", headers=bearer(key[0])).status_code == 200
        up.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(("name", "value"), [("LETHE_RETENTION_DAYS", "abc"), ("LETHE_WEBHOOK_ALLOW", "127.0.0.1")])
def test_a_setting_that_a_part_refuses_is_one_line_at_once(tmp_path: Path, name: str, value: str) -> None:
    began = time.monotonic()
    ended = refused(tmp_path, **{name: value})
    assert time.monotonic() - began < 30  # a few seconds on a machine that does nothing else
    assert ended.returncode == 2
    assert re.fullmatch(rf'lethe: {name}: .* \(got "{value}"\)\n', ended.stderr)
    assert ended.stdout == ""
