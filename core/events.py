"""What a run says while it runs: an event is a kind and its fields, said to whoever listens (docs/engine.md)."""

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from core.errors import Stopped


class Emit(Protocol):
    """Says one event: its kind, and its fields."""

    def __call__(self, event: str, **fields: Any) -> None: ...


def json_lines(stream: TextIO) -> Emit:
    """Events as JSON lines on a stream, safe from several threads."""
    lock = threading.Lock()

    def emit(event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, "at": round(time.time(), 3), **fields}, allow_nan=False)
        with lock:
            stream.write(line + "\n")
            stream.flush()

    return emit


def progress_bar(stream: TextIO = sys.stderr) -> tuple[Emit, Callable[[], None]]:
    """Events as one progress bar a phase on a terminal; the second value closes it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description:<13}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(file=stream),
    )
    bar.start()
    tasks: dict[str, Any] = {}

    def emit(event: str, **fields: Any) -> None:
        if event == "phase":
            # Some phases count nothing; they are over when the next one begins.
            for task in bar.tasks:
                bar.update(task.id, completed=task.total or 1, total=task.total or 1)
            tasks[fields["phase"]] = bar.add_task(fields["phase"], total=None, note="")
        elif event == "progress":
            bar.update(tasks[fields["phase"]], completed=fields["done"], total=fields["total"])
        elif event == "step":
            note = f"loss {fields['loss']:.4f}"
            bar.update(tasks["train"], completed=fields["step"], total=fields["steps"], note=note)

    return emit, bar.stop


class StopFlag:
    """Set by a signal; looked at between batches."""

    def __init__(self) -> None:
        self._set = threading.Event()

    def set(self) -> None:
        """Ask the run to stop at its next batch boundary."""
        self._set.set()

    def __bool__(self) -> bool:
        return self._set.is_set()

    def check(self) -> None:
        """Raises Stopped where a stop was asked for."""
        if self:
            raise Stopped("stopped on request")
