"""The newcomer's way: the demo from POST to a verdict, Ctrl-C in its midst, and the service staying up."""

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

ROOT = Path(__file__).parents[2]
LETHE = [sys.executable, "-m", "api.cli"]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def demonstrated(home: Path) -> dict[str, object]:
    """What the first demo printed."""
    done = subprocess.run([*LETHE, "demo", "--json", "--home", str(home)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    document: dict[str, object] = json.loads(done.stdout)
    return document


def _ended(processes: list[psutil.Process]) -> bool:
    """Whether all of these have gone."""
    return not psutil.wait_procs(processes, timeout=5)[1]


def _parts(home: Path) -> list[psutil.Process]:
    """Whatever runs for the service under `home`: it carries the folder in its environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(home) in process.environ().get("LETHE_DATABASE_URL", ""):
                found.append(process)
    return found


def test_the_demo_forgets_two_people_and_proves_it(home: Path, demonstrated: dict[str, object], tmp_path: Path) -> None:
    paths = demonstrated["paths"]
    before, after = demonstrated["before"], demonstrated["after"]
    assert demonstrated["verdict"] == "passed"
    assert before["forget.probability"] > 0.9 > 0.1 > after["forget.probability"]
    assert after["retain.probability"] > 0.85 * before["retain.probability"]
    forgotten, _, kept = demonstrated["questions"]
    assert forgotten["before"] != forgotten["after"]
    assert kept["before"] == kept["after"]
    assert not _parts(home)

    verify = [*LETHE, "verify", paths["report"], "--key", paths["public_key"], "--model"]
    assert subprocess.run([*verify, paths["model"]], cwd=ROOT, check=False).returncode == 0
    tampered = shutil.copytree(paths["model"], tmp_path / "model")
    weights = bytearray((tampered / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (tampered / "model.safetensors").chmod(0o600)
    (tampered / "model.safetensors").write_bytes(weights)
    found = subprocess.run([*verify, str(tampered)], cwd=ROOT, check=False, capture_output=True, text=True)
    assert found.returncode == 1
    assert "model.safetensors" in found.stdout


@pytest.mark.usefixtures("demonstrated")
def test_nothing_of_the_forget_set_stays_in_the_open(home: Path) -> None:
    rows = [json.loads(line) for line in (ROOT / "examples" / "people.jsonl").read_text(encoding="utf-8").splitlines()]
    sentences = [row[name].encode() for row in rows[:20] for name in ("question", "answer", "paraphrased_answer")]
    searched = [
        file
        for part in ("artifacts", "logs", "work", "runs")
        for file in (home / part).rglob("*")
        if file.is_file() or file.is_symlink()
    ] + list(home.glob("lethe.db*"))
    assert len(searched) > 8
    for file in searched:
        content = file.read_bytes()
        for sentence in sentences:
            assert sentence not in content, file
    assert not list((home / "work").iterdir())
    # The database holds the key of every set.
    assert home.stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_everything(home: Path, demonstrated: dict[str, object]) -> None:
    running = subprocess.Popen([*LETHE, "demo", "--home", str(home)], cwd=ROOT, stdout=subprocess.DEVNULL)
    with sqlite3.connect(f"file:{home / 'lethe.db'}?mode=ro", uri=True) as database:
        newest = "SELECT id, status FROM jobs ORDER BY id DESC LIMIT 1"
        deadline = time.monotonic() + 60
        while (row := database.execute(newest).fetchone())[0] == demonstrated["job"] or row[1] != "running":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        all_of_it = psutil.Process(running.pid).children(recursive=True)
        assert any("core.child" in process.cmdline() for process in all_of_it)
        running.send_signal(signal.SIGINT)
        assert running.wait(25) == 130
        assert _ended(all_of_it)
        # Nobody waits for that job any more, so the next demo must not find it at the head of the queue.
        assert database.execute(newest).fetchone() == (row[0], "cancelled")
    assert not _parts(home)


def test_a_service_that_stays_up_starts_its_parts_again(home: Path) -> None:
    up = subprocess.Popen(
        [*LETHE, "up", "--home", str(home), "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert up.stdout is not None
    try:
        url = re.search(r"http://[\d.:]+", up.stdout.readline())[0]  # type: ignore[index]
        for name in ("redis-server", "uvicorn", "celery"):
            part = next(p for p in psutil.Process(up.pid).children() if any(name in word for word in p.cmdline()))
            part.kill()
            deadline = time.monotonic() + 30
            while not any(
                p.pid != part.pid and any(name in word for word in p.cmdline())
                for p in psutil.Process(up.pid).children()
                if p.status() != psutil.STATUS_ZOMBIE
            ):
                assert time.monotonic() < deadline, name
                time.sleep(0.1)
        _wait_ready(url)
        assert httpx.get(f"{url}/docs").status_code == 200
        assert httpx.get(f"{url}/jobs").status_code == 401
        second = subprocess.run([*LETHE, "up", "--home", str(home)], cwd=ROOT, capture_output=True, text=True)
        assert second.returncode != 0
        assert "Another service is running" in second.stderr
    finally:
        all_of_it = psutil.Process(up.pid).children(recursive=True)
        up.send_signal(signal.SIGTERM)
    assert up.wait(30) == 0
    up.stdout.close()
    assert _ended(all_of_it)
    assert not _parts(home)


def _wait_ready(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("not ready again")
