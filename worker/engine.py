"""The engine as a child process: its own group, a minimal environment, events on a pipe of their own.

A new Engine is a warm spare: it imports torch, says `ready`, and waits for one command.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
# What a child needs to find its libraries and its accelerator; no secret is among them.
_PASSED_ON = (
    "PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV",
    "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE",
    "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME",
)  # fmt: skip
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

Event = dict[str, Any]


class Engine:
    """One child process. `events` gives what it says, in order, as they come; `None` is the end."""

    def __init__(self, device: str | None = None, processes: int = 1, python: str = sys.executable) -> None:
        """`device` lists the CUDA devices that it may see, as CUDA_VISIBLE_DEVICES does; None leaves it those that the
        worker sees. `processes`: how many share a job whose spec names no number."""
        read, write = os.pipe()
        # Only what the spare says before it has seen a request is ever read back from here.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [python, "-m", "core.child", "--events-fd", str(write)],
                cwd=_ROOT,
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ}
                | _OFFLINE
                | ({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})
                | {"LETHE_PROCESSES": str(processes)},
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(write,),
                start_new_session=True,
            )
        finally:
            os.close(write)
        self._started = False
        # The last of what an engine wrote that never got ready, and so has read nothing; known once it has ended.
        self._ready = False
        self.said_before_start = ""
        self.events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(read,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id, and id of its process group."""
        return self._process.pid

    def start(self, command: Mapping[str, Any]) -> None:
        """Give the spare its command. A spare that has died shows it by the end of `events`."""
        self._started = True
        self._write({"run": dict(command)})

    def renew(self, seconds: float) -> None:
        """Tell the engine how long it may go on from now; a spare that still waits has no lease to run out."""
        if self._started:
            self._write({"lease": seconds})

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask it to leave a checkpoint and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and everything in its group now."""
        self._signal(signal.SIGKILL)

    def wait(self) -> int:
        """Exit code, or minus the signal that ended it. Whatever it left in its group is ended too."""
        code = self._process.wait()
        self.kill()
        if self._process.stdin:
            with suppress(OSError):
                self._process.stdin.close()
        self._reader.join()
        if not self._log.closed:
            if not self._ready:
                self._log.seek(0)
                self.said_before_start = self._log.read()[-2000:].decode(errors="replace")
            self._log.close()
        return code

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        # An engine that has ended hears nothing any more; its end is told by `events`.
        with suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as lines:
            for line in lines:
                # A line cut short by a killed engine is the last one.
                with suppress(ValueError):
                    event = json.loads(line)
                    self._ready = self._ready or event["event"] == "ready"
                    self.events.put(event)
        self.events.put(None)


class Spare:
    """A slot's warm engine: `take` hands it out, `refill` starts the next. `close` ends it."""

    def __init__(self, device: str | None = None, processes: int = 1, python: str = sys.executable) -> None:
        self._how = (device, processes, python)
        self._lock = threading.Lock()
        self._engine: Engine | None = None

    def refill(self) -> None:
        """Start a spare unless a live one waits."""
        with self._lock:
            if self._engine is None or not self._engine.alive():
                self._engine = Engine(*self._how)

    def take(self) -> Engine:
        """The spare, or a new engine where there is none."""
        with self._lock:
            engine, self._engine = self._engine, None
        return engine if engine is not None and engine.alive() else Engine(*self._how)

    def close(self) -> None:
        """End the waiting spare."""
        with self._lock:
            if self._engine is not None:
                self._engine.kill()
                self._engine.wait()
                self._engine = None
