"""`python -m core.series SPEC.json --out DIR`: runs over growing forget sets, or over requests one after another.

MUSE's scalability and sustainability (arXiv:2407.06460). Each request is an ordinary run in `DIR/run-N`, so the same
command goes on where one was interrupted. After each of several requests in a row, what the requests before it removed
is measured again on the model then delivered, so that forgetting that does not last shows.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.command import folder_made, heeded, read_json, told
from core.data import Inputs
from core.data.sets import divided, read_set
from core.errors import CheckpointError, DataError, Problem, SpecError
from core.events import Emit, StopFlag
from core.parallel.launch import carry_out, started_as
from core.parallel.peers import Task
from core.report.schema import Measured, Measurement, Report
from core.report.series import Earlier, RequestDone, Series
from core.report.verdict import judge
from core.spec.job import JobSpec
from core.spec.records import Record
from core.spec.series import SeriesSpec, parse

RESULT = "series.json"


def main(arguments: list[str] | None = None) -> None:
    """Carry out a series, or go on with it; ends the process with the exit code."""
    parser = argparse.ArgumentParser(
        prog="lethe series", description="Carry out a request for several forget sets; the same command resumes it."
    )
    parser.add_argument("spec", type=Path, help="a JSON file as for `lethe run`, with `series` and a list of sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs and series.json")
    options = parser.parse_args(arguments)
    stop = heeded()

    def work(emit: Emit) -> list[str]:
        spec, out = parse(read_json(options.spec)), options.out
        done = series(spec, Inputs(), folder_made(out), emit=emit, stop=stop)
        return [*map(_line, done.requests), f"series: {out / RESULT}"]

    sys.exit(told(work))


def series(spec: SeriesSpec, inputs: Inputs, out: Path, *, emit: Emit, stop: StopFlag) -> Series:
    """Carry out every request that is not done yet, leaving `out/run-N` and `out/series.json`; returns what that holds.

    Raises the errors of core.errors.
    """
    _check_alone()
    known = _known(spec, out)
    if known is None or not known.finished:
        _check_sets(spec, inputs)
    done = Series(series=spec.kind, spec_digest=spec.digest(), finished=False, requests=[])
    for i in range(len(spec.requests)):
        before = known.requests[i] if known is not None and i < len(known.requests) else None
        requests = [*done.requests, _request(spec, inputs, out, done.requests, before, emit, stop)]
        done = done.model_copy(update={"requests": requests, "finished": len(requests) == len(spec.requests)})
        if known is None or known.requests[: len(requests)] != requests:
            _write(done, out)
    if done != known and spec.requests[0].evaluation.plots:
        _draw(spec, done, out)
    verdicts = [request.verdict.verdict for request in done.requests]
    emit("done", series=str(out / RESULT), verdicts=verdicts, **({"finished_before": True} if done == known else {}))
    return done


def _request(
    spec: SeriesSpec,
    inputs: Inputs,
    out: Path,
    done: Sequence[RequestDone],
    known: RequestDone | None,
    emit: Emit,
    stop: StopFlag,
) -> RequestDone:
    """The next request: its run, and then the sets of those before it. `known`: what was found of it before."""
    i, follows = len(done), spec.one_after_another and len(done) > 0
    job, folder = spec.request(i, _run(out, i - 1) / "model"), _run(out, i)
    begins = done[-1].output_model if follows else None
    report = _finished(job, folder, begins)
    if report is None:
        emit("request", request=i + 1, requests=len(spec.requests))
        report = _carried_out(job, inputs, folder, begins, emit, stop)
    made = RequestDone(
        request=i + 1,
        folder=folder.name,
        rows=report.forget.rows,
        spec_digest=report.spec_digest,
        input_model=report.input_model,
        output_model=report.output_model,
        steps=report.training.steps,
        seconds=report.training.seconds,
        verdict=report.verdict,
        before=report.before,
        after=report.after,
        earlier=[],
    )
    if known is not None and known.model_copy(update={"earlier": []}) == made:
        return known
    if not follows:
        return made
    sets = [_to_forget(spec, j, inputs) for j in range(i)]
    return made.model_copy(update={"earlier": _earlier(job, sets, done, made, folder / "model", emit, stop)})


def _earlier(
    job: JobSpec,
    sets: Sequence[Sequence[Record]],
    done: Sequence[RequestDone],
    made: RequestDone,
    model: Path,
    emit: Emit,
    stop: StopFlag,
) -> list[Earlier]:
    from core.evaluation.earlier import measured_again

    emit("phase", phase="score_earlier")
    # A ratio to before is one to what the model knew before that request; one to holdout, to what it knows of it now.
    gates = [gate for gate in job.gates if gate.metric.startswith("forget.")]
    found = []
    for before, metrics in zip(done, measured_again(job, sets, model, emit, stop), strict=True):
        verdict = judge(gates, before.before, {**made.after, **metrics})
        found.append(Earlier(request=before.request, metrics=metrics, verdict=verdict))
        dumped = {name: metric.model_dump() for name, metric in metrics.items()}
        emit("earlier", request=made.request, of=before.request, verdict=verdict.verdict, metrics=dumped)
    return found


def _carried_out(job: JobSpec, inputs: Inputs, folder: Path, begins: str | None, emit: Emit, stop: StopFlag) -> Report:
    # Torch takes seconds to import; by now a spec that is wrong has been answered.
    from core import checkpoint

    stop.check()
    resume = checkpoint.latest(folder / "checkpoints")
    return carry_out(Task(job, inputs, folder, resume=resume, model_digest=begins), emit, stop).report


def _finished(job: JobSpec, folder: Path, begins: str | None) -> Report | None:
    """The report of a run that is done. Raises CheckpointError where it is that of another."""
    try:
        report = Report.model_validate_json((folder / "report.json").read_bytes())
    except (OSError, ValueError):
        return None
    if report.spec_digest != job.digest():
        raise CheckpointError(f"{folder} holds the report of another spec; use an empty output folder")
    if begins is not None and report.input_model != begins:
        said = f"began at another model ({report.input_model[:16]}) than was delivered before it ({begins[:16]})"
        raise CheckpointError(f"{folder} {said}; remove it to run it again")
    return report


def _known(spec: SeriesSpec, out: Path) -> Series | None:
    """What the same command has left before. Raises CheckpointError where it was another series."""
    try:
        known = Series.model_validate_json((out / RESULT).read_bytes())
    except (OSError, ValueError):
        return None
    if known.spec_digest != spec.digest():
        raise CheckpointError(f"{out} holds the result of another series; use an empty output folder")
    return known


def _check_alone() -> None:
    place = started_as()
    if place is not None:
        message = "A series is started as one process, and its runs share themselves out. Allowed here: 1."
        raise SpecError([Problem("training.processes", place.size, message)])


def _check_sets(spec: SeriesSpec, inputs: Inputs) -> None:
    """Read every set ahead of the first run, which may take hours. Raises DataError naming the set."""
    fewer = 0
    for i in range(len(spec.requests)):
        count = len(_to_forget(spec, i, inputs))
        if spec.kind == "scalability" and count <= fewer:
            param = f"data.forget.{i}"
            said = f"{count} records to forget, where the set before it has {fewer}; the sets of scalability must grow"
            raise DataError(f"{param}: {said}", param=param)
        fewer = count


def _to_forget(spec: SeriesSpec, i: int, inputs: Inputs) -> list[Record]:
    data = spec.requests[i].data
    return divided(read_set(f"forget.{i}", data.forget, inputs), data.forget_ratio, data.seed)[0]


def _run(out: Path, i: int) -> Path:
    return out / f"run-{i + 1}"


def _write(done: Series, out: Path) -> None:
    draft = out / f"{RESULT}.part"
    draft.write_text(done.model_dump_json(indent=1))
    draft.replace(out / RESULT)


def _line(done: RequestDone) -> str:
    lasting = [f"request {earlier.request} then {earlier.verdict.verdict}" for earlier in done.earlier]
    return "; ".join([f"request {done.request}, {done.rows} rows: {done.verdict.verdict}", *lasting])


# MUSE's criteria and what every request has; a gate's metrics go before them.
_DRAWN = (
    "verbatim.rouge_l_f1",
    "knowledge.rouge_l",
    "retain_knowledge.rouge_l",
    "muse.privleak",
    "tofu.model_utility",
    "forget.probability",
    "retain.probability",
)


def _draw(spec: SeriesSpec, done: Series, out: Path) -> None:
    """`out/series.svg`: metrics by rows or by request; of the first request's set also what was found of it later."""
    from core import plots

    names = list(dict.fromkeys([*(gate.metric for gate in spec.requests[0].gates), *_DRAWN]))
    values = {name: [_value(request.after, name) for request in done.requests] for name in names}
    if spec.one_after_another:
        first = [done.requests[0].after, *(request.earlier[0].metrics for request in done.requests[1:])]
        values |= {f"{n} of request 1": [_value(m, n) for m in first] for n in names if n.startswith("forget.")}
        plots.series(out, values, x=[request.request for request in done.requests], xlabel="request")
    else:
        plots.series(out, values, x=[request.rows for request in done.requests], xlabel="rows to forget")


def _value(metrics: Mapping[str, Measurement], name: str) -> float | None:
    found = metrics.get(name)
    return found.value if isinstance(found, Measured) else None


if __name__ == "__main__":
    main()
