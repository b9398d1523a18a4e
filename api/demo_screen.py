"""What `lethe demo` shows a person: progress bars while it runs, then tables."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from api.demo import Show

_PHASES = {
    "load": "loading",
    "reference": "reference",
    "score_before": "scoring before",
    "train": "unlearning",
    "score_after": "scoring after",
    "attacks": "attacks",
    "report": "report",
}


class Lines(Show):
    """What happens next, a line each on stderr: stdout is for a document."""

    def say(self, text: str) -> None:
        """Print it."""
        print(text, file=sys.stderr, flush=True)


class Screen(Show):
    """A bar a phase, on a terminal or in a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("  {task.description:<15}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Screen":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print above the bars."""
        self._console.print(text, highlight=False)

    def progress(self, phase: str, done: float, total: float, note: str) -> None:
        """Move a phase's bar; a new phase completes those before it."""
        name = _PHASES.get(phase, phase)
        if name not in self._tasks:
            self._finish()
            self._tasks[name] = self._bars.add_task(name, total=total, note=note)
        self._bars.update(self._tasks[name], completed=done, total=total, note=note)

    def _finish(self) -> None:
        for task in self._bars.tasks:
            if not task.finished:
                self._bars.update(task.id, completed=task.total or 1)


def print_result(console: Console, document: dict[str, Any]) -> None:
    """Before and after, three answers, the verdict, and where everything lies."""
    table = Table("metric", "before", "after", title="Measured on the full sets")
    for name, before in document["before"].items():
        after = document["after"].get(name)
        table.add_row(name, *("absent" if v is None else f"{v:.3f}" for v in (before, after)))
    console.print(table)
    answers = Table("question", "before", "after", title="Three questions", show_lines=True)
    for row in document["questions"]:
        # A model may write anything, square brackets too.
        answers.add_row(*(Text(row[column]) for column in ("question", "before", "after")))
    console.print(answers)
    colour = {"passed": "green", "not_passed": "red"}.get(document["verdict"], "yellow")
    console.print(f"Verdict: [bold {colour}]{document['verdict']}[/]")
    for reason in document["reasons"]:
        console.print(f"  {reason}", highlight=False)
    checked = "verified" if document["signature_verified"] else "NOT verified"
    console.print(f"Signature and digests: {checked}")
    for name, path in document["paths"].items():
        console.print(f"  {name.replace('_', ' '):<14}{path}", highlight=False, soft_wrap=True)
    seconds = document["seconds"]
    console.print(f"{seconds['total']:.0f} s in all, {seconds['job']:.0f} s from POST to verdict.", highlight=False)
