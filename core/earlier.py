"""What earlier jobs on a model's line removed, measured again on the model that this run delivers.

A service lists those jobs in a file: each with its report and, where that is still held, its forget set. Each set is
measured as its own request asked, so that the numbers then and now can be compared.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core import environment
from core import model as models
from core.data.encode import encode
from core.data.inputs import Inputs
from core.data.sets import divided, read_set
from core.errors import LetheError, OutOfMemory
from core.evaluation.earlier import of_set
from core.evaluation.scorer import Scorer
from core.events import StopFlag
from core.report.lasting import Lasting, came_back
from core.report.schema import Absent, EarlierRemoval, Measurement, Report
from core.spec.job import JobSpec, parse
from core.spec.records import Record


def lasting(listed: Path | None, scorer: Scorer) -> Lasting | None:
    """What is found of every job in the file; None where there is no file. The scorer has the model as delivered.

    Raises Stopped between batches, and of shards OutOfMemory.
    """
    if listed is None:
        return None
    known = json.loads(listed.read_text())
    jobs: Sequence[Mapping[str, Any]] = known["jobs"]
    if jobs:
        scorer.emit("phase", phase="score_earlier")
    found = []
    for done, job in enumerate(jobs):
        scorer.emit("progress", phase="score_earlier", done=done, total=len(jobs))
        found.append(_again(job, scorer))
    if jobs:
        scorer.emit("progress", phase="score_earlier", done=len(jobs), total=len(jobs))
    return Lasting(found, known["of"])


def _again(job: Mapping[str, Any], scorer: Scorer) -> EarlierRemoval:
    try:
        report = Report.model_validate_json(Path(job["report"]).read_bytes())
        spec = parse(report.spec)
    except (LetheError, OSError, TypeError, ValueError):
        return _unknown(job["job"], Absent(absent="its report is not there, or is another version's"))
    then = {name: metric for name, metric in report.after.items() if name.startswith("forget.")}
    made = EarlierRemoval(
        job=job["job"],
        commitment=report.forget.commitment,
        rows=report.forget.rows,
        then=then,
        now=Absent(absent="not measured"),
        came_back=Absent(absent="not measured"),
        reasons=[],
    )
    now = _measured(job, spec, scorer)
    if isinstance(now, Absent):
        return made.model_copy(update={"now": now, "came_back": now})
    back, reasons = came_back(spec.gates, report.before, report.after, now)
    return made.model_copy(update={"now": now, "came_back": back, "reasons": reasons})


def _measured(job: Mapping[str, Any], spec: JobSpec, scorer: Scorer) -> dict[str, Measurement] | Absent:
    if job["absent"] is not None:
        return Absent(absent=job["absent"])
    try:
        records = _to_forget(spec, job)
    except (LetheError, OSError) as error:
        code = error.code if isinstance(error, LetheError) else type(error).__name__
        return Absent(absent=f"its forget set cannot be read ({code})")
    # As that request asked, but of this model: its tokenizer, and the system prompt under which it is to be used.
    plain = scorer.encoder
    encoder = models.encoder(scorer.model, plain.tokenizer, spec.data.prompt, spec.data.max_length, plain.system)
    data = encode(records, encoder, "forget")
    if not data.records:
        return Absent(absent="none of its records fits into its data.max_length")
    spec = _no_more_at_once(spec, scorer.spec)
    if scorer.world.sharded:
        return of_set(spec, scorer.model, encoder, data, scorer.stop, scorer.world)

    def apart(stop: StopFlag) -> dict[str, Measurement] | Absent:
        try:
            with environment.memory_for(spec):
                return of_set(spec, scorer.model, encoder, data, stop)
        except OutOfMemory:
            return Absent(absent="out of memory: its forget set did not fit beside this run")

    return scorer.world.apart(apart, scorer.stop)


def _no_more_at_once(spec: JobSpec, own: JobSpec) -> JobSpec:
    """What fitted into the earlier run's device need not fit into this one's. It changes no result."""
    most = min(spec.evaluation.batch_tokens, own.evaluation.batch_tokens)
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"batch_tokens": most})})


def _to_forget(spec: JobSpec, job: Mapping[str, Any]) -> list[Record]:
    inputs = Inputs(datasets={job["dataset"]: Path(job["records"])})
    return divided(read_set("forget", spec.data.forget, inputs), spec.data.forget_ratio, spec.data.seed)[0]


def _unknown(job: str, reason: Absent) -> EarlierRemoval:
    return EarlierRemoval(
        job=job, commitment=reason, rows=reason, then=reason, now=reason, came_back=reason, reasons=[]
    )
