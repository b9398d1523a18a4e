"""The whole job on one page: a spec and its inputs in, a model folder and a report out.

From the command line: `python -m core.run SPEC.json --out DIR`; the same command resumes what was interrupted.
"""

import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core import checkpoint
from core import model as models
from core.data import SOURCES, Inputs
from core.data.encode import EncodedSet, encode
from core.environment import available_threads, describe, prepare
from core.errors import DataError, Diverged, ModelError, Stopped
from core.evaluation import metrics_of
from core.evaluation.score import RowScore, score
from core.events import Emit, StopFlag
from core.methods import METHODS
from core.reference import Reference, add_hidden, add_sums
from core.refusals import REFUSALS
from core.report.build import build
from core.report.digest import file_digests
from core.report.digest import model_digest as digest_of
from core.report.schema import Absent, Measurement, Report, TrainingDone
from core.spec.job import JobSpec
from core.tokens import Encoder, Example
from core.train import Trainer, steps_of


@dataclass(frozen=True)
class Outcome:
    """Where a finished run left its report and the model."""

    report: Report
    report_file: Path
    model: Path


def run(
    spec: JobSpec,
    inputs: Inputs,
    out: Path,
    *,
    emit: Emit,
    stop: StopFlag,
    resume: Path | None = None,
    commitments: Mapping[str, str] | None = None,
    model_digest: str | None = None,
    keep_checkpoints: int | None = 2,
) -> Outcome:
    """Carry out a spec, leaving `out/model`, `out/report.json` and `out/checkpoints`.

    `resume` is a checkpoint folder to go on from; `commitments` the keyed commitments of the sets, where the caller
    holds their keys; `model_digest` what the input model must be; `keep_checkpoints` None keeps them all. Raises the
    errors of core.errors.
    """
    began, started_at = time.monotonic(), _now()
    state = checkpoint.read_state(resume) if resume else None
    device = prepare(state.threads if state else spec.threads or available_threads())
    emit("accepted", spec_digest=spec.digest(), resumed_from=state.step if state else None)

    emit("phase", phase="load")
    records = {name: _read(source, inputs) for name, source in _sources(spec).items()}
    folder = inputs.model(spec)
    models.check_folder(folder)
    input_model = digest_of(file_digests(folder, follow_links=True))
    if model_digest is not None and input_model != model_digest:
        raise ModelError(f"{folder} is no longer what was registered: its digest is {input_model}", param="model")
    model, tokenizer = models.load(folder, device)
    encoder = Encoder(tokenizer, spec.data.prompt, min(spec.data.max_length, models.positions(model)))
    sets = {name: encode(rows, encoder, name) for name, rows in records.items()}
    check = checkpoint.data_check(sets, commitments or {})
    if state:
        checkpoint.check_same_run(state, spec_digest=spec.digest(), input_model=input_model, data_check=check)

    scorer = _Scorer(spec, model, encoder, sets, emit, stop)
    before = checkpoint.measurements(state.before) if state else scorer.measure("before", 0)

    trainer = Trainer(
        spec, model, _trained_on(spec, sets, encoder), Reference(), steps_of(spec, len(sets["forget"].examples))
    )
    if resume and state:
        checkpoint.restore(resume, trainer, state)
    else:
        emit("phase", phase="reference")
        _fill_reference(trainer, stop)

    emit("phase", phase="train")
    training_began = time.monotonic()
    first_step: list[float] = []

    def say(event: str, **fields: Any) -> None:
        if event == "step" and not first_step:
            first_step.append(time.monotonic() - began)
        emit(event, **fields)

    def save() -> None:
        seconds = (state.seconds if state else 0.0) + time.monotonic() - training_began
        kept = checkpoint.save(out / "checkpoints", trainer, spec, input_model, check, before, seconds)
        emit("checkpoint", step=trainer.step, folder=str(kept))
        if keep_checkpoints is not None:
            checkpoint.prune(kept, keep_checkpoints)

    trainer.run(say, stop, save, lambda: scorer.watch(trainer.step))
    trained = TrainingDone(
        steps=trainer.steps,
        resumed_from=state.step if state else Absent(absent="not resumed"),
        seconds=round((state.seconds if state else 0.0) + time.monotonic() - training_began, 3),
        seconds_to_first_step=round(first_step[0], 3) if first_step else Absent(absent="no step was left to take"),
        final_loss=trainer.loss if trainer.loss is not None else Absent(absent="no step was taken"),
        clip_fraction=_mean_clip(trainer.curve),
        curve=trainer.curve,
    )
    # A stop that comes while scoring must not cost the training: the last step is a checkpoint too.
    try:
        after = scorer.measure("after", trainer.step)
    except Stopped:
        save()
        raise

    emit("phase", phase="report")
    models.save(model, tokenizer, out / "model")
    digests = file_digests(out / "model")
    report = build(
        spec,
        started_at=started_at,
        finished_at=_now(),
        input_model=input_model,
        output_files=digests,
        sets={name: (len(s.examples), s.answer_tokens, list(s.too_long)) for name, s in sets.items()},
        commitments=commitments or {},
        before=before,
        after=after,
        training=trained,
        environment=describe(device),
    )
    report_file = out / "report.json"
    report_file.write_text(report.model_dump_json(indent=2))
    emit(
        "done",
        verdict=report.verdict.verdict,
        report=str(report_file),
        model=str(out / "model"),
        seconds_to_first_step=round(first_step[0], 3) if first_step else None,
    )
    return Outcome(report, report_file, out / "model")


@dataclass(frozen=True)
class _Scorer:
    """Scores both sets with the spec's settings, saying how far it is."""

    spec: JobSpec
    model: Any
    encoder: Encoder
    sets: Mapping[str, EncodedSet]
    emit: Emit
    stop: StopFlag

    def measure(self, when: str, step: int) -> dict[str, Measurement]:
        """Every metric of every set. Raises Diverged naming the step, or ModelError where that is 0."""
        phase = f"score_{when}"
        self.emit("phase", phase=phase)
        metrics: dict[str, Measurement] = {}
        finished, total = 0, sum(len(s.records) for s in self.sets.values())
        for name, data in self.sets.items():

            def progress(done: int, of: int, base: int = finished, rows: int = len(data.records)) -> None:
                self.emit("progress", phase=phase, done=base + rows * done // of, total=total)

            rows = self._score(data, step, progress=progress)
            metrics |= metrics_of(name, rows, self.spec.evaluation.bootstrap)
            finished += len(data.records)
        self.emit("scores", when=when, metrics={name: m.model_dump() for name, m in metrics.items()})
        return metrics

    def watch(self, step: int) -> None:
        """A cheap look at the first rows of each set: nothing is generated, no random number is drawn."""
        count = self.spec.evaluation.watch_rows
        if not count:
            return
        values: dict[str, float] = {}
        for name, data in self.sets.items():
            rows = self._score(data, step, generate=False, rows=count)
            metrics = metrics_of(name, rows, 100)
            values |= {key: m.value for key, m in metrics.items() if not isinstance(m, Absent)}
        self.emit("watch", step=step, metrics=values)

    def _score(self, data: EncodedSet, step: int, **how: Any) -> list[RowScore]:
        evaluation = self.spec.evaluation
        rows = score(
            self.model,
            self.encoder,
            data,
            batch_tokens=evaluation.batch_tokens,
            max_new_tokens=evaluation.max_new_tokens,
            stop=self.stop,
            **how,
        )
        # No loss of training follows the last update, so only this would show what it did.
        if wrong := [row.nll for row in rows if not row.finite]:
            if step:
                raise Diverged(step, wrong[0])
            raise ModelError(f"the model as given has a loss of {wrong[0]} on {len(wrong)} records", param="model")
        return rows


def _sources(spec: JobSpec) -> dict[str, Any]:
    sources = {"forget": spec.data.forget, "retain": spec.data.retain}
    return {name: source for name, source in sources.items() if source is not None}


def _read(source: Any, inputs: Inputs) -> list[Any]:
    return SOURCES[source.source](source, inputs)


def _trained_on(spec: JobSpec, sets: Mapping[str, EncodedSet], encoder: Encoder) -> dict[str, tuple[Example, ...]]:
    """What each set's rows are in training: themselves, or a refusal in place of each forget answer."""
    examples = {name: s.examples for name, s in sets.items()}
    if METHODS[spec.method.name].looks_at == "refusal":
        records = sets["forget"].records
        if not all(record.prompt for record in records):
            reason = "a refusal answers a prompt, and {text} records of the forget set have none"
            raise DataError(f"method '{spec.method.name}': {reason}", param="method.name")
        sentences = getattr(spec.method, "refusals", None) or REFUSALS
        drawn = np.random.default_rng((spec.seed, 3)).integers(0, len(sentences), len(records))
        refused = [
            # A raw answer brings its own space, or none; its refusal does as it did.
            encoder.example(r, answer=(" " if r.raw and r.answer[0].isspace() else "") + sentences[i])
            for r, i in zip(records, drawn.tolist(), strict=True)
        ]
        fitting = tuple(e for e in refused if e is not None)
        if len(fitting) < len(refused):
            raise DataError(
                f"{len(refused) - len(fitting)} of {len(refused)} refusals do not fit into data.max_length = "
                f"{encoder.max_length} tokens",
                param="data.max_length",
            )
        examples["forget"] = fitting
    return examples


def _fill_reference(trainer: Trainer, stop: StopFlag) -> None:
    """Compute, once, what the objective needs of the original model."""
    tokens = trainer.spec.evaluation.batch_tokens
    for name, needs in (("forget", trainer.method.needs), ("retain", trainer.retain.needs)):
        examples = trainer.sets.get(name, ())
        if "reference_sums" in needs:
            add_sums(trainer.reference, name, trainer.model, examples, tokens, stop)
        if "reference_logits" in needs:
            add_hidden(trainer.reference, name, trainer.model, examples, trainer.rows_ever(name), tokens, stop)


def _mean_clip(curve: list[dict[str, float]]) -> float | Absent:
    fractions = [point["clip_fraction"] for point in curve if "clip_fraction" in point]
    return sum(fractions) / len(fractions) if fractions else Absent(absent="the optimizer does not clip coordinates")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


if __name__ == "__main__":
    from core.command import main

    main()
