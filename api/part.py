"""One child process of the embedded service, which ends with whoever started it."""

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_STOP_SECONDS = 20.0
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1
_INVALID, _SAID = 2, "lethe: "  # how a part ends that cannot use its settings


@dataclass
class Part:
    """One child process of the service, and when it was last started."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    short_lives: int = 0  # in a row
    log_begins: int = 0  # where in the log this start's lines do

    def start(self) -> None:
        """Start it, in a session of its own: Ctrl-C reaches the roof only, which ends the parts in their order."""
        with self.log.open("ab") as log:
            self.log_begins = log.tell()
            self.process = subprocess.Popen(
                self.command,
                cwd=_ROOT,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        self.started = time.monotonic()

    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def wait(self) -> None:
        """Wait until it has ended by itself."""
        if self.process is not None:
            self.process.wait()

    def refusal(self) -> str | None:
        """What it said of its settings, where it ended itself because of them."""
        if self.process is None or self.process.poll() != _INVALID:
            return None
        with self.log.open("rb") as log:
            log.seek(self.log_begins)
            lines = log.read().decode(errors="replace").splitlines()
        return next((line.removeprefix(_SAID) for line in lines if line.startswith(_SAID)), None)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL where it does not heed it."""
        if self.process is None or not self.alive():
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _end_with_parent() -> None:
    """On Linux the kernel ends a part whose roof was killed. It runs between fork and exec, so it loads nothing."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)
