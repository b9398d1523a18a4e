"""A whole evaluation of one model: scored, attacked, judged, drawn; or the same again from rows alone."""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from core import model as models
from core.data.encode import encode
from core.data.inputs import Inputs
from core.data.sets import read_sets
from core.environment import available_threads, describe, memory_for, prepare
from core.errors import CheckpointError, DataError, ModelError, Problem, SpecError
from core.evaluation import Evidence, measured
from core.evaluation.evidence import Rows
from core.evaluation.others import rows_elsewhere
from core.evaluation.rows import RowScore, file_of, read_rows
from core.evaluation.scorer import Scorer, check
from core.events import Emit, StopFlag
from core.plots.of_run import distributions
from core.report.build import left_in, limitations, now, unseen, used
from core.report.digest import digest_of_folder
from core.report.schema import Absent, Evaluated, Measurement
from core.report.verdict import judge
from core.spec.base import Spec
from core.spec.evaluation import Evaluation
from core.spec.gates import Gate
from core.spec.job import JobSpec, validated
from core.spec.metrics import SETS
from core.spec.profiles import with_profile

_NOT_IN_ROWS = {
    "embedder": "the rows hold no judgement of an embedder",
    "classifier": "the rows hold no judgement of a classifier",
    "reference": "the rows hold no losses of a reference model",
    "membership": "the rows hold no norms of gradients",
    "retrained": "no rows of a retrained model were given (--retrained)",
}
_NOTHING_BEFORE = "no model to compare with was given (--before)"


def evaluate(
    spec: JobSpec, inputs: Inputs, out: Path, *, before: Path | None = None, emit: Emit, stop: StopFlag
) -> Evaluated:
    """Measure the spec's model, and first the one before it where there is one.

    Leaves `out/report.json`, `out/rows` and `out/plots`. Raises the errors of core.errors.
    """
    started = now()
    stop.check()
    with memory_for(spec):
        device = prepare(spec.threads or available_threads())
        emit("accepted", spec_digest=spec.digest(), resumed_from=None)
        emit("phase", phase="load")
        check(spec, inputs)
        folder = inputs.model(spec)
        _check_folders(folder, before, out)
        _check_free(out, spec.digest())
        records = read_sets(spec.data, inputs)
        digests = {each: digest_of_folder(each) for each in (folder, before) if each is not None}
        once: dict[Any, Any] = {}

        def scorer(of: Path) -> Scorer:
            model, tokenizer = models.load(of, device)
            encoder = models.encoder(model, tokenizer, spec.data.prompt, spec.data.max_length)
            sets = {name: encode(rows, encoder, name) for name, rows in records.items()}
            kept = out / "rows"
            about = {"model": digests[of]}
            return Scorer(spec, model, encoder, sets, emit, stop, inputs=inputs, folder=kept, about=about, _once=once)

        for stale in (out / "rows").glob("*.parquet"):
            stale.unlink()
        earlier = scorer(before).measure("before", 0) if before else _not_before(spec.gates)
        # A model in cycles with what looks at it would stand beside the next one.
        gc.collect()
        last = scorer(folder)
        after = last.measure("after", 0)
        after |= last.attack()
        emit("phase", phase="report")
        rows = {when: last.rows(when) or {} for when in ("before", "after")}
        told = {name: used(data, records[name].places) for name, data in last.sets.items()}
        report = Evaluated(
            spec=spec.model_dump(mode="json"),
            spec_digest=spec.digest(),
            started_at=started,
            finished_at=now(),
            model=digests[folder],
            before_model=digests[before] if before else Absent(absent=_NOTHING_BEFORE),
            sets=told,
            before=dict(earlier),
            after=after,
            verdict=judge(spec.gates, earlier, after, unseen(told["forget"])),
            environment=describe(device),
            limitations=limitations(spec),
        )
    return _written(report, rows, spec.evaluation.plots, out, emit)


class _Asked(Spec):
    """What of a request rows alone can answer."""

    profile: str | None = None
    gates: list[Gate] = []  # noqa: RUF012 -- pydantic copies it
    evaluation: Evaluation = Evaluation()


def recompute(folder: Path, asked: Mapping[str, Any], out: Path, *, retrained: Path | None, emit: Emit) -> Evaluated:
    """The metrics and the verdict from rows that lie in `folder`; attacks and benchmarks, which need a model, stay
    absent. Raises DataError and SpecError."""
    started = now()
    wanted = {name: value for name, value in with_profile(dict(asked)).items() if name in _Asked.model_fields}
    spec = validated(_Asked, wanted)
    _check_free(out, None)
    rows = _read(folder)
    named = spec.evaluation.retrained
    if retrained is None and named is not None and named.rows is not None:
        retrained = Path(named.rows)
    others = rows_elsewhere(retrained, {name: len(own) for name, own in rows["after"].items()}) if retrained else {}
    found = {
        when: measured(Evidence(own, others, _NOT_IN_ROWS), spec.evaluation.bootstrap)
        if own
        else _not_before(spec.gates)
        for when, own in rows.items()
    }
    found["after"] |= {
        gate.metric: Absent(
            absent="this was computed from rows alone, and it needs the model or data that was not given"
        )
        for gate in spec.gates
        if gate.metric not in found["after"]
    }
    resolved = {"rows": str(folder), "retrained": str(retrained) if retrained else None, **spec.model_dump(mode="json")}
    report = Evaluated(
        spec=resolved,
        spec_digest=Absent(absent="computed from rows, not by a request"),
        started_at=started,
        finished_at=now(),
        model=Absent(absent="computed from rows; their files say of which request they are"),
        before_model=Absent(absent="computed from rows"),
        sets={},
        before=found["before"],
        after=found["after"],
        verdict=judge(spec.gates, found["before"], found["after"]),
        environment=describe(torch.device("cpu")),
        limitations=["Computed from rows as they lay there: nothing here says that they are the model's."],
    )
    return _written(report, rows, spec.evaluation.plots, out, emit)


def _written(report: Evaluated, rows: Mapping[str, Rows], plots: bool, out: Path, emit: Emit) -> Evaluated:
    if plots:
        distributions(out / "plots", rows)
    (out / "report.json").write_text(report.model_dump_json(indent=2))
    emit(
        "done",
        verdict=report.verdict.verdict,
        report=str(out / "report.json"),
        **left_in(out),
    )
    return report


def _read(folder: Path) -> dict[str, dict[str, Sequence[RowScore]]]:
    """Rows by when and set. Raises DataError where none of forget lie there, or rows of more than one request."""
    rows: dict[str, dict[str, Sequence[RowScore]]] = {"before": {}, "after": {}}
    requests = {}
    for when, own in rows.items():
        for name in SETS:
            file = file_of(folder, when, name)
            if file is not None:
                own[name], about = read_rows(file)
                requests[file.name] = about.get("spec_digest")
    if "forget" not in rows["after"]:
        raise DataError(f"{folder} holds no after-forget.parquet", param="rows")
    if strange := [name for name, request in requests.items() if request != requests["after-forget.parquet"]]:
        said = f"{folder} holds rows of several requests: {', '.join(strange)} and after-forget.parquet differ"
        raise DataError(said, param="rows")
    return rows


def _check_folders(folder: Path, before: Path | None, out: Path) -> None:
    models.check_folder(folder)
    if before is not None:
        try:
            models.check_folder(before)
        except ModelError as error:
            raise ModelError(f"before: {error.message}", param="before") from None
    for each in (folder, before):
        if each is not None and out.resolve().is_relative_to(each.resolve()):
            said = f"{out} lies in the model's folder {each}, which must stay as it is; use another."
            raise SpecError([Problem("out", str(out), said)])


def _check_free(out: Path, digest: str | None) -> None:
    """Raises CheckpointError where `out` holds the report of something else, which would be lost: `digest` is that of
    this request, None of one that computes from rows."""
    file = out / "report.json"
    if not file.exists():
        return
    try:
        found = Evaluated.model_validate_json(file.read_bytes()).spec_digest
    except (OSError, ValueError):
        found = ""
    if found != digest and not (digest is None and isinstance(found, Absent)):
        raise CheckpointError(f"{out} holds the report of something else; use an empty output folder")


def _not_before(gates: Sequence[Gate]) -> dict[str, Measurement]:
    return {gate.metric: Absent(absent=_NOTHING_BEFORE) for gate in gates if gate.relative_to == "before"}
