"""The other processes of a run that was started alone: `python -m core.parallel.peers`, each with its task on stdin.

The end of stdin means that the first process is gone; what a peer has to say, an error at most, is a line on stdout.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.data.inputs import Inputs
from core.errors import EXIT_INTERNAL, EXIT_OK, LeaseLost, LetheError, OutOfMemory, ProcessLost
from core.events import Emit, StopFlag, json_lines
from core.spec.job import JobSpec, parse

_ROOT = Path(__file__).resolve().parents[2]
# How long the first process may take to end in its own way after another has.
_GRACE_SECONDS = 10.0
_NOTICE_SECONDS = 2.0
_END_SECONDS = 30.0


@dataclass(frozen=True)
class Member:
    """One of several requests that share a run, and the keyed commitments of its sets."""

    job: str
    spec: JobSpec
    commitments: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What a run is told by whoever starts it; see core.run.run."""

    spec: JobSpec
    inputs: Inputs
    out: Path
    resume: Path | None = None
    commitments: Mapping[str, str] = field(default_factory=dict)
    model_digest: str | None = None
    keep_checkpoints: int | None = 2
    members: Sequence[Member] = ()


@dataclass(frozen=True)
class Place:
    """A process's place among those that share a run; `beside` counts those on its machine.

    `store` is the file where processes of ours meet; None: they meet as torchrun says.
    """

    rank: int
    size: int
    local_rank: int
    beside: int
    store: str | None = None


@contextmanager
def peers(task: Task, places: list[Place], emit: Emit) -> Iterator[None]:
    """The other processes, while the block runs. Where one of them ends too early, so does this one, with an error:
    it might wait for an answer for ever."""
    running = [_Peer(task, place) for place in places]
    noticed, over = threading.Event(), threading.Event()
    ended: list[_Peer] = []

    def follow(peer: _Peer) -> None:
        peer.follow()
        ended.append(peer)
        noticed.set()

    def watch() -> None:
        noticed.wait()
        if not over.wait(_GRACE_SECONDS):
            error = max(ended, key=lambda peer: peer.process.returncode != 0).lost()
            emit("error", **error.as_dict())
            print(error.message, file=sys.stderr)
            os._exit(error.exit_code)

    for peer in running:
        threading.Thread(target=follow, args=(peer,), daemon=True).start()
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except LetheError:
        raise
    except Exception as error:
        # A broken connection is what a process that has died looks like from here.
        noticed.wait(_NOTICE_SECONDS)
        if lost := next((peer for peer in ended if peer.process.returncode), None):
            raise lost.lost() from error
        raise
    finally:
        over.set()
        noticed.set()
        for peer in running:
            peer.close()


class _Peer:
    """Another process of the run, and the error it told of last."""

    def __init__(self, task: Task, place: Place) -> None:
        self._task = task
        self._place = place
        self._said: dict[str, Any] = {}
        path = os.pathsep.join(p for p in (str(_ROOT), os.environ.get("PYTHONPATH")) if p)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "core.parallel.peers"],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(json.dumps(_written(task, place)).encode() + b"\n")
            self.process.stdin.flush()

    def follow(self) -> None:
        """Listen until it has ended."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with suppress(ValueError, TypeError):
                    self._said = dict(json.loads(line))
        self.process.wait()

    def lost(self) -> LetheError:
        """Its end as an error of the run."""
        if self._said.get("code") == OutOfMemory.code:
            spec = self._task.spec
            return OutOfMemory(spec.training.micro_batch_tokens, spec.evaluation.batch_tokens)
        return ProcessLost(self._place.rank, self._place.size, self.process.returncode, self._said.get("message"))

    def close(self) -> None:
        """Let it end, which it does at the end of its stdin at the latest."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _written(task: Task, place: Place) -> dict[str, Any]:
    return {
        "place": vars(place),
        "spec": task.spec.model_dump(mode="json"),
        "models": {name: str(path) for name, path in task.inputs.models.items()},
        "datasets": {name: str(path) for name, path in task.inputs.datasets.items()},
        "earlier": str(task.inputs.earlier) if task.inputs.earlier else None,
        "out": str(task.out),
        "resume": str(task.resume) if task.resume else None,
        "commitments": dict(task.commitments),
        "model_digest": task.model_digest,
        "members": [
            {"job": m.job, "spec": m.spec.model_dump(mode="json"), "commitments": dict(m.commitments)}
            for m in task.members
        ],
    }


def _read(written: Mapping[str, Any]) -> tuple[Task, Place]:
    models, datasets = ({k: Path(v) for k, v in written[kind].items()} for kind in ("models", "datasets"))
    task = Task(
        parse(written["spec"]),
        Inputs(models, datasets, Path(written["earlier"]) if written["earlier"] else None),
        Path(written["out"]),
        resume=Path(written["resume"]) if written["resume"] else None,
        commitments=written["commitments"],
        model_digest=written["model_digest"],
        members=[Member(m["job"], parse(m["spec"]), m["commitments"]) for m in written["members"]],
    )
    return task, Place(**written["place"])


def internal(error: Exception) -> dict[str, Any]:
    """An error that nobody thought of, as a job carries it: its type and place alone, since a message or traceback of a
    library may quote the forget set."""
    where = error.__traceback__
    while where and where.tb_next:
        where = where.tb_next
    place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else "unknown place"
    message = f"{type(error).__name__} at {place}{_of_the_system(error)}"
    return {"code": "internal", "message": message, "param": None, "retryable": True}


def _of_the_system(error: Exception) -> str:
    """What the operating system said, which quotes nobody. safetensors and torch pass a full disk on as text."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and "No space left on device" in str(error):
        number = errno.ENOSPC
    return f": {os.strerror(number)}" if number else ""


def main() -> None:
    """Carry out this process's part of a task, end with its exit code."""
    from core.parallel.launch import carry_out

    stop = StopFlag()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # The first process hears Ctrl-C too, and tells.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries print to stdout.
    said = json_lines(os.fdopen(os.dup(1), "w", buffering=1))
    os.dup2(2, 1)
    line = sys.stdin.readline()
    if not line:
        os._exit(LeaseLost.exit_code)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    task, place = _read(json.loads(line))
    code = EXIT_OK
    try:
        carry_out(task, said, stop, place)
    except LetheError as error:
        code = error.exit_code
        said("error", **error.as_dict())
    except Exception as error:
        code = EXIT_INTERNAL
        said("error", **internal(error))
    # The thread blocks on stdin; interpreter shutdown must not wait for it.
    os._exit(code)


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(LeaseLost.exit_code)


if __name__ == "__main__":
    main()
