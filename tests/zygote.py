"""Real processes for real exit codes, without the five seconds that each takes to import torch.

One Python imports the libraries once; every process asked of it is forked from there and then runs a module of the
engine as `python -m` would, on descriptors of its own.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_MOST = 1 << 16
_NUMBER = struct.Struct("q")


class Process:
    """A running process. `code` is its exit code, minus the signal where one ended it."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self._status = status

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def alive(self) -> bool:
        """Whether it still runs."""
        return not select.select([self._status], [], [], 0)[0]

    def wait(self, seconds: float = 60.0) -> int:
        """Its exit code; killed, with TimeoutError, if it has none in time."""
        if not select.select([self._status], [], [], seconds)[0]:
            os.kill(self.pid, signal.SIGKILL)
            raise TimeoutError(f"still running after {seconds} s")
        return os.waitstatus_to_exitcode(_read_number(self._status))


class Zygote:
    """Starts processes. `close` ends it; what it started goes on."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._python = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=(theirs.fileno(),),
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
            )

    def start(self, module: str, *arguments: str, stdin: Any, stdout: Any, stderr: Any, events: Any = None) -> Process:
        """Run a module on these open files (or descriptors); `events` becomes descriptor 3."""
        files = [stdin, stdout, stderr, *([] if events is None else [events])]
        read, write = os.pipe()
        descriptors = [file if isinstance(file, int) else file.fileno() for file in files]
        socket.send_fds(self._socket, [json.dumps([module, *arguments]).encode()], [write, *descriptors])
        os.close(write)
        return Process(_read_number(read), read)

    def close(self) -> None:
        """End the zygote."""
        self._socket.close()
        self._python.wait(10)


def _read_number(descriptor: int) -> int:
    number: int = _NUMBER.unpack(os.read(descriptor, _NUMBER.size))[0]
    return number


def _serve(requests: socket.socket) -> None:
    """Fork a process for each request; in it, this function returns by running the module."""
    import transformers.generation  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    # Not core.run and its like: `runpy` runs them as a fresh interpreter would.
    import core.checkpoint
    import core.evaluation  # noqa: F401

    # A process that ends need not collect, nor even look at, what was here before it.
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _MOST, 8)
        if not message:
            return
        if os.fork():
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        requests.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        status, *files = descriptors
        if pid := os.fork():
            os.write(status, _NUMBER.pack(pid))
            for descriptor in files:
                os.close(descriptor)
            os.write(status, _NUMBER.pack(os.waitpid(pid, 0)[1]))
            os._exit(0)
        os.close(status)
        for number, descriptor in enumerate(files):
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
        module, *sys.argv[1:] = json.loads(message)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
