"""`python -m core.run SPEC.json --out DIR`: the engine alone, for researchers. Exit codes are those of core.errors."""

import argparse
import json
import signal
import sys
import traceback
from pathlib import Path

from core.data import Inputs
from core.errors import EXIT_INTERNAL, EXIT_OK, CheckpointError, LetheError, Problem, SpecError, Stopped
from core.events import Emit, StopFlag, json_lines, progress_bar
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
    try:
        return parse(json.loads(file.read_text("utf-8")))
    except OSError as error:
        raise SpecError([Problem("", str(file), f"{file} cannot be read: {error.strerror}")]) from None
    except ValueError as error:
        raise SpecError([Problem("", str(file), f"{file} is not JSON: {error}")]) from None


def _run(file: Path, out: Path) -> int:
    stop = StopFlag()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    # Output that goes to a file or a program is for reading by one, though somebody may look at stderr.
    terminal = sys.stdout.isatty() and sys.stderr.isatty()
    emit, close = progress_bar() if terminal else (json_lines(sys.stdout), lambda: None)
    try:
        spec = read_spec(file)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError([Problem("", str(out), f"{out} cannot be made a folder: {error.strerror}")]) from None
        done = _already_done(spec, out)
        if done:
            emit(
                "done",
                verdict=done.verdict.verdict,
                report=str(out / "report.json"),
                model=str(out / "model"),
                seconds_to_first_step=None,
                finished_before=True,
            )
        report = done or _carry_out(spec, out, emit, stop)
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
        if done:
            print(f"{out} holds the finished run of this spec; nothing was done again.")
        print(f"verdict: {report.verdict.verdict}", *report.verdict.reasons, f"report: {out / 'report.json'}", sep="\n")
    return EXIT_OK


def _carry_out(spec: JobSpec, out: Path, emit: Emit, stop: StopFlag) -> Report:
    # Torch takes seconds to import. By now Ctrl-C is heeded, and a spec that is wrong has been answered.
    from core import checkpoint
    from core.environment import memory_for
    from core.run import run

    stop.check()
    with memory_for(spec):
        resume = checkpoint.latest(out / "checkpoints")
        return run(spec, Inputs(), out, emit=emit, stop=stop, resume=resume).report


def _already_done(spec: JobSpec, out: Path) -> Report | None:
    try:
        report = Report.model_validate_json((out / "report.json").read_bytes())
    except (OSError, ValueError):
        return None
    if report.spec_digest != spec.digest():
        raise CheckpointError(f"{out} holds the report of another spec; use an empty output folder")
    return report
