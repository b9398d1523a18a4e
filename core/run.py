"""The whole job on one page: a spec and its inputs in, a model folder and a report out.

From the command line: `python -m core.run SPEC.json --out DIR`; the same command resumes what was interrupted.
"""

if __name__ == "__main__":
    # Ahead of the imports below, which take seconds: a signal and a bad spec are answered at once.
    from core.command import main

    main()

import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from core import checkpoint, tuning
from core import model as models
from core.checks import check_against
from core.data import Inputs
from core.data.encode import EncodedSet, encode
from core.data.sets import read_sets
from core.data.trained_on import check_records, trained_on
from core.edits import EDITS, Context, Edit
from core.edits.retrain import check_base
from core.environment import available_threads, describe, prepare
from core.errors import ModelError, Stopped
from core.evaluation.scorer import Scorer
from core.events import Emit, StopFlag
from core.optim import check_available
from core.parallel.processes import ALONE, Processes
from core.precision import autocast
from core.reference import Reference, observe
from core.report.build import build
from core.report.digest import file_digests
from core.report.digest import model_digest as digest_of
from core.report.schema import Absent, Measurement, Report, TrainingDone
from core.spec.job import JobSpec
from core.tokens import Encoder
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
    processes: Processes = ALONE,
) -> Outcome:
    """Carry out a spec, leaving `out/model`, `out/report.json` and `out/checkpoints`.

    `resume` is a checkpoint folder to go on from; `commitments` the keyed commitments of the sets, where the caller
    holds their keys; `model_digest` what the input model must be; `keep_checkpoints` None keeps them all. Raises the
    errors of core.errors.
    """
    began, started_at = time.monotonic(), _now()
    state = checkpoint.read_state(resume) if resume else None
    device = prepare(_threads(spec, state, processes), processes.device)
    emit("accepted", spec_digest=spec.digest(), resumed_from=state.step if state else None)

    emit("phase", phase="load")
    # A model to be cut up may fit no device whole; its parts go there when it is.
    loaded = _load(spec, inputs, torch.device("cpu") if processes.sharded else device, model_digest)
    start = tuning.start(spec, inputs)
    if processes.sharded:
        # Shards stay in the format in which they are cut up, which is ahead of the scores before.
        tuning.hold(loaded.model, spec, start)
    check = checkpoint.data_check(loaded.sets, commitments or {})
    if state:
        checkpoint.check_same_run(state, spec_digest=spec.digest(), input_model=loaded.digest, data_check=check)
    examples = trained_on(spec, loaded.sets, loaded.encoder)
    trainer = Trainer(spec, loaded.model, examples, Reference(), steps_of(spec, examples), processes)
    within = partial(processes.within, trainer.objective)
    scorer = Scorer(spec, loaded.model, loaded.encoder, loaded.sets, emit, stop, processes)
    before = checkpoint.measurements(state.before) if state else within(lambda: scorer.measure("before", 0))

    edit = EDITS.get(spec.method.name, Edit())
    context = Context(spec, loaded.model, inputs.model(spec), inputs, loaded.sets, emit, stop)
    if edit.before:
        edit.before(context)
    if not processes.sharded:
        tuning.hold(loaded.model, spec)
    if resume and state:
        checkpoint.restore(resume, trainer, state)
    else:
        emit("phase", phase="reference")
        within(lambda: _fill_reference(trainer, stop))

    emit("phase", phase="train")
    saves = _Checkpoints(out / "checkpoints", trainer, loaded.digest, check, before, emit, keep_checkpoints)
    saves.seconds_before = state.seconds if state else 0.0
    heard = _FirstStep(emit, began)
    trainer.run(heard, stop, saves, lambda: within(lambda: scorer.watch(trainer.step)))
    trained = _trained(trainer, state, saves.seconds, heard.seconds)

    # A stop that comes while scoring must not cost the training: the last step is a checkpoint too. One is left ahead
    # of an edit or a merge, since resuming does it again.
    changed = edit.after is not None or tuning.settles(spec)
    if changed and trainer.steps:
        saves()
    if edit.after:
        edit.after(context)
    tuning.settle(loaded.model, spec, start, sharded=processes.sharded)
    scorer = _guarded(scorer)
    try:
        after = within(lambda: scorer.measure("after", trainer.step))
    except Stopped:
        if trainer.steps and not changed:
            saves()
        raise

    emit("phase", phase="report")
    processes.put_together(loaded.model)

    def finish() -> Report:
        tuning.deliver(loaded.model, loaded.encoder.tokenizer, out / "model", spec, start)
        if scorer.encoder.system is not None:
            (out / "model" / "system_prompt.txt").write_text(scorer.encoder.system, "utf-8")
        report = build(
            spec,
            started_at=started_at,
            finished_at=_now(),
            input_model=loaded.digest,
            output_files=file_digests(out / "model"),
            sets={name: (len(s.examples), s.answer_tokens, list(s.too_long)) for name, s in loaded.sets.items()},
            commitments=commitments or {},
            before=before,
            after=after,
            training=trained,
            environment=describe(device, processes.size),
        )
        (out / "report.json").write_text(report.model_dump_json(indent=2))
        return report

    outcome = Outcome(processes.from_first(finish), out / "report.json", out / "model")
    emit(
        "done",
        verdict=outcome.report.verdict.verdict,
        report=str(outcome.report_file),
        model=str(outcome.model),
        seconds_to_first_step=heard.seconds,
    )
    return outcome


@dataclass
class _Checkpoints:
    """Saves the trainer's state when called. `seconds`: of training so far, over all attempts."""

    folder: Path
    trainer: Trainer
    input_model: str
    check: str
    before: Mapping[str, Measurement]
    emit: Emit
    keep: int | None
    seconds_before: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def __call__(self) -> None:
        trainer = self.trainer
        kept = checkpoint.save(
            self.folder, trainer, trainer.spec, self.input_model, self.check, self.before, self.seconds
        )
        self.emit("checkpoint", step=trainer.step, folder=str(kept))
        if self.keep is not None and trainer.processes.first:
            checkpoint.prune(kept, self.keep)


@dataclass
class _FirstStep:
    """Passes events on, and notes how long after the beginning the first step was done."""

    emit: Emit
    began: float
    seconds: float | None = None

    def __call__(self, event: str, **fields: Any) -> None:
        if event == "step" and self.seconds is None:
            self.seconds = round(time.monotonic() - self.began, 3)
        self.emit(event, **fields)


def _trained(trainer: Trainer, state: checkpoint.State | None, seconds: float, first: float | None) -> TrainingDone:
    """What training did, for the report."""
    return TrainingDone(
        steps=trainer.steps,
        resumed_from=state.step if state else Absent(absent="not resumed"),
        seconds=round(seconds, 3),
        seconds_to_first_step=Absent(absent="no step was left to take") if first is None else first,
        final_loss=trainer.loss if trainer.loss is not None else Absent(absent="no step was taken"),
        clip_fraction=_mean_clip(trainer.curve),
        curve=trainer.curve,
    )


@dataclass(frozen=True)
class _Loaded:
    """The input model with its digest, and the sets in its tokens."""

    model: PreTrainedModel
    digest: str
    encoder: Encoder
    sets: dict[str, EncodedSet]


def _load(spec: JobSpec, inputs: Inputs, device: torch.device, expected: str | None) -> _Loaded:
    """Data first: a bad line is told before the weights are read. `expected` is what the model's digest must be."""
    records = read_sets(spec.data, inputs)
    folder = inputs.model(spec)
    models.check_folder(folder)
    check_against(spec, folder)
    tuning.check(spec, folder)
    check_base(tuning.start(spec, inputs), folder)
    check_records(spec, records)
    check_available(spec.optimizer)
    digest = digest_of(file_digests(folder, follow_links=True))
    if expected is not None and digest != expected:
        raise ModelError(f"{folder} is no longer what was registered: its digest is {digest}", param="model")
    model, tokenizer = models.load(folder, device)
    tuning.prepare(model, spec)
    encoder = Encoder(tokenizer, spec.data.prompt, min(spec.data.max_length, models.positions(model)))
    return _Loaded(model, digest, encoder, {name: encode(rows, encoder, name) for name, rows in records.items()})


def _threads(spec: JobSpec, state: checkpoint.State | None, processes: Processes) -> int:
    """Threads of this process; those of the checkpoint where it goes on from one of as many processes."""
    if state and state.processes == processes.size:
        return state.threads
    return spec.threads or max(1, available_threads() // processes.beside)


def _guarded(scorer: Scorer) -> Scorer:
    """The scorer as the method's model will be asked: under its system prompt, where that is the method."""
    system = getattr(scorer.spec.method, "system_prompt", None)
    if system is None:
        return scorer
    plain = scorer.encoder
    encoder = Encoder(plain.tokenizer, plain.format, plain.max_length, system)
    sets = {name: encode(data.records, encoder, name) for name, data in scorer.sets.items()}
    return replace(scorer, encoder=encoder, sets=sets)


def _fill_reference(trainer: Trainer, stop: StopFlag) -> None:
    """Compute, once, what the objective needs of the original model."""
    needs = {name: trainer.objective.needs[name] for name in trainer.names}
    rows = {name: trainer.feed.rows_ever(name, trainer.steps) for name in trainer.names}
    tokens, world = trainer.spec.evaluation.batch_tokens, trainer.processes
    model, layer = trainer.model, trainer.objective.layer
    # In the precision of training, or a model that has not moved would seem to have.
    with autocast(model, trainer.spec.training.precision):
        observe(trainer.reference, needs, model, trainer.sets, rows, layer, tokens, stop, world)


def _mean_clip(curve: list[dict[str, float]]) -> float | Absent:
    fractions = [point["clip_fraction"] for point in curve if "clip_fraction" in point]
    return sum(fractions) / len(fractions) if fractions else Absent(absent="the optimizer does not clip coordinates")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
