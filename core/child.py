"""The engine as the worker's child process: one command on stdin, events on a descriptor of their own.

`python -m core.child --events-fd N` imports torch, says `ready`, and waits: a warm spare. After the command, stdin
carries leases only; when one runs out, or stdin ends, the worker is gone or frozen and this process ends at once.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from core.command import read_spec
from core.data import Inputs
from core.errors import EXIT_INTERNAL, EXIT_OK, LeaseLost, LetheError
from core.events import Emit, StopFlag, json_lines
from core.parallel.launch import carry_out
from core.parallel.peers import Member, Task, internal

_LOOK_SECONDS = 0.2


def main() -> None:
    """Wait for one command, carry it out, end with its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events-fd", type=int, required=True)
    events = os.fdopen(parser.parse_args().events_fd, "w", buffering=1)
    stop = StopFlag()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # The worker decides on Ctrl-C for its children; the terminal must not.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _warm()
    emit = json_lines(events)
    try:
        emit("ready")
        line = sys.stdin.readline()
        if not line:
            sys.exit(EXIT_OK)
        command = json.loads(line)["run"]
        threading.Thread(target=_keep_lease, args=(command["lease"],), daemon=True).start()
        code = _carry_out(command, emit, stop)
    except BrokenPipeError:
        # Nobody reads the events any more: the worker is gone.
        code = LeaseLost.exit_code
    # The lease thread blocks on stdin; interpreter shutdown must not wait for it.
    os._exit(code)


def _warm() -> None:
    """Import now what every run needs, so that a command waits for none of it."""
    import rouge_score.rouge_scorer  # noqa: F401
    import transformers.generation  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    import core.run  # noqa: F401


def _carry_out(command: dict[str, Any], emit: Emit, stop: StopFlag) -> int:
    try:
        inputs = json.loads(Path(command["inputs"]).read_text())
        task = Task(
            read_spec(Path(command["spec"])),
            Inputs(
                {name: Path(path) for name, path in inputs["models"].items()},
                {name: Path(path) for name, path in inputs["datasets"].items()},
                Path(command["earlier"]) if command.get("earlier") else None,
            ),
            Path(command["out"]),
            resume=Path(command["resume"]) if command["resume"] else None,
            commitments=_held(command["commitments"]),
            model_digest=command.get("model_digest"),
            keep_checkpoints=None,
            members=[
                Member(m["job"], read_spec(Path(m["spec"])), _held(m["commitments"]))
                for m in command.get("members", ())
            ],
        )
        carry_out(task, emit, stop)
    except LetheError as error:
        emit("error", **error.as_dict(), of=error.of)
        return error.exit_code
    except Exception as error:
        emit("error", **internal(error))
        return EXIT_INTERNAL
    return EXIT_OK


def _held(commitments: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in commitments.items() if value}


def _keep_lease(seconds: float) -> None:
    """End the process when the lease passes without renewal, or when stdin ends."""
    deadline = [time.monotonic() + seconds]

    def read() -> None:
        for line in sys.stdin:
            deadline[0] = time.monotonic() + float(json.loads(line)["lease"])
        os._exit(LeaseLost.exit_code)

    threading.Thread(target=read, daemon=True).start()
    while time.monotonic() < deadline[0]:
        time.sleep(_LOOK_SECONDS)
    os._exit(LeaseLost.exit_code)


if __name__ == "__main__":
    main()
