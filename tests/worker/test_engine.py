"""The child process from the worker's side."""

import os
import sys
from pathlib import Path

import pytest

from worker.engine import Engine


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to look into another process")
def test_an_engine_gets_no_secret_and_a_group_of_its_own(engine: Engine) -> None:
    environment = Path(f"/proc/{engine.pid}/environ").read_bytes()
    assert b"do-not-pass-on" not in environment
    assert b"HF_HUB_OFFLINE=1" in environment
    assert os.getpgid(engine.pid) == engine.pid != os.getpgid(0)


def test_a_killed_engine_is_the_end_of_its_events(engine: Engine) -> None:
    engine.kill()
    while (event := engine.events.get(timeout=10)) is not None:
        assert event["event"] == "ready"
    assert engine.wait() == -9
    assert not engine.alive()
    engine.renew(5)
    engine.stop()


def test_what_an_engine_says_that_cannot_start_is_known(tmp_path: Path) -> None:
    engine = Engine(python=_without_libraries(tmp_path))
    engine.start({"run": "never read"})
    assert engine.events.get(timeout=20) is None
    assert engine.wait() == 1
    assert "ModuleNotFoundError" in engine.said_before_start


def _without_libraries(folder: Path) -> str:
    """A Python that finds the standard library only."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    script.chmod(0o755)
    return str(script)
