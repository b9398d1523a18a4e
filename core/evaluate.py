"""`python -m core.evaluate MODEL --forget ... --out DIR`: measure any model folder, also one that Lethe did not make.

The same sets, metrics, attacks and gates as after a run. With `--rows` everything is computed again from the rows that
an earlier scoring left, without a model.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from core.command import folder_made, heeded, read_json, told
from core.data import Inputs
from core.errors import Problem, SpecError
from core.events import Emit
from core.spec.job import JobSpec, parse
from core.spec.metrics import SETS
from core.spec.profiles import PROFILES
from core.spec.sources import PromptFormat

_OPTIONAL = tuple(name for name in SETS if name not in ("forget", "retain", "holdout"))
_OF_A_MODEL = (*SETS, "before", "prompt")


def main(arguments: list[str] | None = None) -> None:
    """Measure and write DIR/report.json; ends the process with the exit code."""
    options = _parser().parse_args(arguments)
    stop = heeded()

    def work(emit: Emit) -> Sequence[str]:
        if options.rows is not None:
            return _again(options, emit)
        spec = request(options)
        before = Path(options.before) if options.before else None
        out = folder_made(options.out)
        from core.evaluation.whole import evaluate

        report = evaluate(spec, Inputs(), out, before=before, emit=emit, stop=stop)
        return lines(report.verdict.verdict, report.verdict.reasons, out)

    sys.exit(told(work))


def request(options: argparse.Namespace) -> JobSpec:
    """The command's options, over the request in `--spec`, as a request that changes nothing. Raises SpecError."""
    asked: dict[str, Any] = dict(_object(options.spec)) if options.spec else {}
    if options.model is not None:
        asked["model"] = options.model
    given = {name: value for name in SETS if (value := getattr(options, name)) is not None}
    data: dict[str, Any] = {name: source(value, name) for name, value in given.items()}
    if options.prompt is not None:
        data["prompt"] = options.prompt
    evaluation = {}
    if options.retrained is not None:
        folder = options.retrained
        a_model = (Path(folder) / "config.json").is_file()
        evaluation["retrained"] = {"model": {"path": folder}} if a_model else {"rows": folder}
    for name, more in (("data", data), ("evaluation", evaluation)):
        # What is no object stays as it is, for `parse` to say so.
        if isinstance(asked.setdefault(name, {}), dict):
            asked[name] = {**asked[name], **more}
    if options.profile is not None:
        asked["profile"] = options.profile
    # What a request asks of training has nothing to do with measuring; `origin` is the method that changes nothing.
    for name in ("optimizer", "training", "preset"):
        asked.pop(name, None)
    return parse({**asked, "method": "origin"})


def source(value: str, name: str) -> Any:
    """A set as the command line names it: a file of JSON lines, or a source as JSON. Raises SpecError."""
    if not value.lstrip().startswith("{"):
        return {"source": "jsonl", "path": value}
    try:
        return json.loads(value)
    except ValueError as error:
        said = f"Input should be a file of JSON lines, or a source as a JSON object; this is no JSON: {error}."
        raise SpecError([Problem(f"data.{name}", value, said)]) from None


def lines(verdict: str, reasons: Sequence[str], out: Path) -> list[str]:
    """What a terminal is shown at the end."""
    return [f"verdict: {verdict}", *reasons, f"report: {out / 'report.json'}"]


def _again(options: argparse.Namespace, emit: Emit) -> Sequence[str]:
    beside = [f"--{name.replace('_', '-')}" for name in _OF_A_MODEL if getattr(options, name) is not None]
    if options.model is not None or beside:
        refused = ", ".join([*(["a model"] if options.model is not None else []), *beside])
        said = f"--rows computes from rows alone. Not allowed beside it: {refused}."
        raise SpecError([Problem("rows", str(options.rows), said)])
    from core.evaluation.whole import recompute

    asked = dict(_object(options.spec)) if options.spec else {}
    if options.profile is not None:
        asked["profile"] = options.profile
    retrained = Path(options.retrained) if options.retrained else None
    out = folder_made(options.out)
    report = recompute(options.rows, asked, out, retrained=retrained, emit=emit)
    return lines(report.verdict.verdict, report.verdict.reasons, out)


def _object(file: Path) -> Mapping[str, Any]:
    found = read_json(file)
    if not isinstance(found, dict):
        raise SpecError([Problem("", str(file), f"{file} holds no JSON object")])
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lethe evaluate", description="Measure a model folder; nothing is changed.")
    parser.add_argument("model", nargs="?", help="a folder in the hub's layout")
    parser.add_argument("--out", type=Path, required=True, help="folder for report, rows and plots")
    for name in ("forget", "retain", "holdout"):
        parser.add_argument(f"--{name}", help=f"{SETS[name]}: a file of JSON lines, or a source as JSON")
    for name in _OPTIONAL:
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, help=SETS[name])
    parser.add_argument("--before", help="the model as it was before, for gates that compare with it")
    parser.add_argument("--retrained", help="a model retrained without the forget set, or the rows of one")
    parser.add_argument("--profile", choices=PROFILES, help="gates and attacks by name")
    parser.add_argument("--prompt", choices=get_args(PromptFormat), help="how a question becomes a prompt")
    parser.add_argument("--spec", type=Path, help="a JSON file with gates, evaluation, data: as in a request")
    parser.add_argument("--rows", type=Path, help="compute everything again from this folder of rows, without a model")
    return parser


if __name__ == "__main__":
    main()
