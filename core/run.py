"""The whole job on one page: a spec and its inputs in, a model folder and a report out.

From the command line: `python -m core.run SPEC.json --out DIR`; the same command resumes what was interrupted.
"""

if __name__ == "__main__":
    # Ahead of the imports below, which take seconds: a signal and a bad spec are answered at once.
    from core.command import main

    main()

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from core import checkpoint, tuning
from core.data import Inputs
from core.data.encode import encode
from core.data.trained_on import trained_on
from core.earlier import lasting
from core.edits import EDITS, Context, Edit
from core.environment import Memory, available_threads, describe, prepare
from core.errors import Stopped
from core.evaluation.scorer import Scorer
from core.events import Emit, StopFlag
from core.loading import load
from core.members import Members
from core.parallel.peers import Member
from core.parallel.processes import ALONE, Processes
from core.plots.of_run import drawn
from core.precision import autocast
from core.reference import Reference, observe
from core.report.build import build, now
from core.report.digest import file_digests
from core.report.schema import Absent, Report, TrainingDone
from core.saver import Saver
from core.spec.job import JobSpec
from core.tokens import Encoder
from core.train import Trainer, steps_of
from core.watching import BEST, Watcher


@dataclass(frozen=True)
class Outcome:
    """Where a finished run left its report and the model; of several requests the report of the first."""

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
    members: Sequence[Member] = (),
) -> Outcome:
    """Carry out a spec, leaving `out/model`, `out/report.json` and `out/checkpoints`; for `members`, several requests
    that share the run, a report each in `out/members/JOB`.

    `resume` is a checkpoint folder to go on from; `commitments` the keyed commitments of the sets, where the caller
    holds their keys; `model_digest` what the input model must be; `keep_checkpoints` None keeps them all. Raises the
    errors of core.errors.
    """
    began, started_at = time.monotonic(), now()
    state = checkpoint.read_state(resume) if resume else None
    device = prepare(_threads(spec, state, processes), processes.device)
    requests = Members(spec, members, commitments or {})
    spec = requests.spec
    requests.tell(emit, "accepted", resumed_from=state.step if state else None)

    emit("phase", phase="load")
    memory = Memory(device)
    # A model to be cut up may fit no device whole; its parts go there when it is.
    place = torch.device("cpu") if processes.sharded else device
    loaded = load(spec, inputs, requests.read(inputs), place, model_digest)
    requests.check(loaded.sets)
    if processes.sharded:
        # Shards stay in the format in which they are cut up, which is ahead of the scores before.
        tuning.hold(loaded.model, spec, loaded.start)
    check = checkpoint.data_check(loaded.sets, requests.commitments())
    if state:
        checkpoint.check_same_run(state, spec_digest=spec.digest(), input_model=loaded.digest, data_check=check)
    examples = trained_on(spec, loaded.sets, loaded.encoder)
    trainer = Trainer(spec, loaded.model, examples, Reference(), steps_of(spec, examples), processes)
    within = partial(processes.within, trainer.objective)
    scorer = Scorer(spec, loaded.model, loaded.encoder, loaded.sets, emit, stop, processes, inputs, folder=out / "rows")
    watcher = Watcher(scorer, trainer, out / "best")
    if resume and state:
        before = checkpoint.measurements(state.before)
        watcher.looks, watcher.best = list(state.looks), state.best
        processes.from_first(lambda: _put_back(resume, out))
    else:
        before = within(lambda: requests.measured(scorer, "before", 0))

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
    earlier = state.seconds if state else 0.0
    saves = Saver(
        out / "checkpoints",
        trainer,
        loaded.digest,
        check,
        before,
        emit,
        keep_checkpoints,
        earlier,
        lambda: (watcher.looks, watcher.best, [*watcher.files, *sorted((out / "rows").glob(checkpoint.ROWS))]),
    )
    heard = _FirstStep(emit, began)
    # A stop that comes while looking or scoring must not cost the training: the last step is a checkpoint too.
    changed = False
    try:
        within(watcher.begin)
        if not watcher.enough:
            trainer.run(heard, stop, saves, lambda: within(watcher))
            within(watcher.close)
        # One is left ahead of an edit, a merge or a choice, since resuming does it again.
        chosen = watcher.chosen
        # Nor may it cost hours of what comes after; and what trained the model need not stand beside it then.
        evaluation = spec.evaluation
        long = bool(evaluation.attacks or evaluation.lm_eval or evaluation.retrained or inputs.earlier)
        changed = edit.after is not None or tuning.settles(spec) or chosen != trainer.step or long
        if changed and trainer.steps:
            saves()
        watcher.choose()
        if changed:
            trainer.let_go()
        if edit.after:
            edit.after(context)
        trained = _trained(trainer, watcher, chosen, state, saves.seconds, heard.seconds)
        tuning.settle(loaded.model, spec, loaded.start, sharded=processes.sharded)
        scorer = _guarded(scorer)
        after = within(lambda: requests.measured(scorer, "after", chosen))
        under_attack = within(lambda: requests.attacked(scorer))
        lasts = within(lambda: lasting(inputs.earlier, scorer))
    except Stopped:
        if trainer.steps and not changed:
            saves()
        raise

    emit("phase", phase="report")
    processes.put_together(loaded.model)

    def finish() -> list[Report]:
        tuning.deliver(loaded.model, loaded.encoder.tokenizer, out / "model", spec, loaded.start)
        if scorer.encoder.system is not None:
            (out / "model" / "system_prompt.txt").write_text(scorer.encoder.system, "utf-8")
        output_files = file_digests(out / "model")
        requests.divide(out / "rows", scorer.sets["forget"])
        reports = []
        used = requests.used(loaded.sets)
        for i, (member, sets, own) in enumerate(
            zip(requests.all, requests.parts(loaded.sets), requests.scorers(scorer), strict=True)
        ):
            folder = requests.folder(out, member)
            report = build(
                member.spec,
                started_at=started_at,
                finished_at=now(),
                input_model=loaded.digest,
                output_files=output_files,
                sets=used[i],
                before=before[i],
                after=after[i] | under_attack[i],
                training=requests.training(trained, loaded.sets, sets),
                environment=describe(device, processes.size),
                earlier=lasts,
            )
            if spec.evaluation.plots:
                drawn(folder / "plots", report, own)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "report.json").write_text(report.model_dump_json(indent=2))
            reports.append(report)
        shutil.rmtree(out / "best", ignore_errors=True)
        return reports

    reports = processes.from_first(finish)
    told = requests.told(out, reports)
    emit("done", model=str(out / "model"), seconds_to_first_step=heard.seconds, memory=memory.told(), **told)
    return Outcome(reports[0], requests.folder(out, requests.all[0]) / "report.json", out / "model")


def _put_back(checkpointed: Path, out: Path) -> None:
    """What of an earlier attempt's files this one goes on with."""
    checkpoint.put_back(checkpointed, checkpoint.ROWS, out / "rows")
    checkpoint.put_back(checkpointed, BEST, out / "best")


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


def _trained(
    trainer: Trainer,
    watcher: Watcher,
    chosen: int,
    state: checkpoint.State | None,
    seconds: float,
    first: float | None,
) -> TrainingDone:
    """What training did, for the report."""
    return TrainingDone(
        steps=trainer.step,
        planned_steps=trainer.steps,
        delivered_step=chosen,
        stopped_early=trainer.step < trainer.steps,
        resumed_from=state.step if state else Absent(absent="not resumed"),
        seconds=round(seconds, 3),
        seconds_to_first_step=Absent(absent="no step was left to take") if first is None else first,
        final_loss=trainer.loss if trainer.loss is not None else Absent(absent="no step was taken"),
        clip_fraction=_mean_clip(trainer.curve),
        curve=trainer.curve,
        looks=watcher.looks,
    )


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
