"""`python -m core.run SPEC.json --out DIR`: the engine alone, for researchers. Exit codes are those of core.errors."""

import argparse
import json
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.data import Inputs
from core.errors import EXIT_INTERNAL, EXIT_OK, CheckpointError, LetheError, Problem, SpecError, Stopped
from core.events import Emit, StopFlag, json_lines, progress_bar
from core.parallel.launch import carry_out, started_as
from core.parallel.peers import Task
from core.report.schema import Report
from core.spec.job import JobSpec, parse


def main(arguments: list[str] | None = None) -> None:
    """Run a spec file, or resume it; ends the process with the exit code."""
    parser = argparse.ArgumentParser(prog="lethe run", description="Carry out a spec; the same command resumes it.")
    parser.add_argument("spec", type=Path, help="a JSON file as for POST /jobs, with paths instead of ids")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, model and report")
    options = parser.parse_args(arguments)
    sys.exit(_run(options.spec, options.out))


def read_spec(file: Path) -> JobSpec:
    """The spec in a file. Raises SpecError, also for a file that is not JSON."""
    return parse(read_json(file))


def read_json(file: Path) -> Any:
    """What a JSON file holds. Raises SpecError."""
    try:
        return json.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise SpecError([Problem("", str(file), f"{file} cannot be read: {error.strerror}")]) from None
    except ValueError as error:
        raise SpecError([Problem("", str(file), f"{file} is not JSON: {error}")]) from None


def heeded() -> StopFlag:
    """The flag that Ctrl-C and SIGTERM set from now on."""
    stop = StopFlag()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def folder_made(out: Path) -> Path:
    """The folder, made where it is not there. Raises SpecError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError([Problem("", str(out), f"{out} cannot be made a folder: {error.strerror}")]) from None
    return out


def told(work: Callable[[Emit], Sequence[str]]) -> int:
    """Do the work, telling its events and its error; returns the exit code. A terminal is shown the lines it returns.

    Output that goes to a file or a program is for reading by one, though somebody may look at stderr.
    """
    terminal = sys.stdout.isatty() and sys.stderr.isatty()
    emit, close = progress_bar() if terminal else (json_lines(sys.stdout), lambda: None)
    try:
        lines = work(emit)
    except LetheError as error:
        close()
        if terminal:
            hint = ". Run the same command to go on." if isinstance(error, Stopped) else ""
            print(f"{error.message}{hint}", file=sys.stderr)
        else:
            emit("error", **error.as_dict())
        return error.exit_code
    except Exception as error:
        close()
        traceback.print_exc()
        if not terminal:
            emit("error", code="internal", message=f"{type(error).__name__}: {error}", param=None, retryable=True)
        return EXIT_INTERNAL
    close()
    if terminal:
        print(*lines, sep="\n")
    return EXIT_OK


def _run(file: Path, out: Path) -> int:
    stop = heeded()
    place = started_as()
    if place is not None and place.rank:
        return _beside(file, out, stop)

    def work(emit: Emit) -> list[str]:
        spec = read_spec(file)
        done = _already_done(spec, folder_made(out))
        if done:
            emit(
                "done",
                verdict=done.verdict.verdict,
                report=str(out / "report.json"),
                model=str(out / "model"),
                seconds_to_first_step=None,
                finished_before=True,
            )
        verdict = (done or _carry_out(spec, out, emit, stop)).verdict
        before = [f"{out} holds the finished run of this spec; nothing was done again."] if done else []
        return [*before, f"verdict: {verdict.verdict}", *verdict.reasons, f"report: {out / 'report.json'}"]

    return told(work)


def _beside(file: Path, out: Path, stop: StopFlag) -> int:
    """One of the other processes that torchrun started: it says nothing but what went wrong with itself."""
    try:
        spec = read_spec(file)
        if _already_done(spec, out) is None:
            _carry_out(spec, out, lambda *_, **__: None, stop)
    except Stopped as error:
        return error.exit_code
    except LetheError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def _carry_out(spec: JobSpec, out: Path, emit: Emit, stop: StopFlag) -> Report:
    # Torch takes seconds to import. By now Ctrl-C is heeded, and a spec that is wrong has been answered.
    from core import checkpoint

    stop.check()
    return carry_out(Task(spec, Inputs(), out, resume=checkpoint.latest(out / "checkpoints")), emit, stop).report


def _already_done(spec: JobSpec, out: Path) -> Report | None:
    try:
        report = Report.model_validate_json((out / "report.json").read_bytes())
    except (OSError, ValueError):
        return None
    if report.spec_digest != spec.digest():
        raise CheckpointError(f"{out} holds the report of another spec; use an empty output folder")
    return report
