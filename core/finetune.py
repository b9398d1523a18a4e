"""`python -m core.finetune SPEC.json --out DIR`: train a model on a set, as what is to forget must first have learnt.

The same loop as a run's, without scores or a report; the same command resumes what was interrupted.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.command import folder_made, heeded, read_json, told
from core.data import Inputs
from core.errors import CheckpointError, Problem, SpecError
from core.events import Emit, StopFlag
from core.parallel.launch import started_as
from core.spec.finetune import FinetuneSpec, parse
from core.spec.job import JobSpec

RESULT = "finetune.json"


def main(arguments: list[str] | None = None) -> None:
    """Carry out a spec file, or resume it; ends the process with the exit code."""
    parser = argparse.ArgumentParser(prog="lethe finetune", description="Train a model; the same command resumes it.")
    parser.add_argument("spec", type=Path, help="a JSON file: model, data.train, optimizer, training")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, model and finetune.json")
    options = parser.parse_args(arguments)
    stop = heeded()

    def work(emit: Emit) -> list[str]:
        spec, out = parse(read_json(options.spec)), options.out
        done = _already_done(spec, folder_made(out))
        if done is None:
            done = finetune(spec, Inputs(), out, emit=emit, stop=stop)
        else:
            emit("done", model=str(out / "model"), loss=done["final_loss"], finished_before=True)
        return [f"loss: {done['losses'][0]:.4f}, at the end {done['final_loss']:.4f}", f"model: {out / 'model'}"]

    sys.exit(told(work))


def finetune(spec: FinetuneSpec, inputs: Inputs, out: Path, *, emit: Emit, stop: StopFlag) -> dict[str, Any]:
    """Train, going on from the last checkpoint in `out`, and leave `out/model` and `out/finetune.json`, whose content
    is returned. Raises the errors of core.errors."""
    _check_alone(spec)
    # Torch takes seconds to import; by now a spec that is wrong has been answered.
    from core import checkpoint, environment

    job = spec.job()
    stop.check()
    resume = checkpoint.latest(out / "checkpoints")
    state = checkpoint.read_state(resume) if resume else None
    threads = state.threads if state else spec.threads or environment.available_threads()
    with environment.memory_for(job):
        device = environment.prepare(threads)
        emit("accepted", spec_digest=spec.digest(), resumed_from=state.step if state else None)
        return _trained(spec, job, inputs, out, emit, stop, device, resume, state)


def _trained(
    spec: FinetuneSpec,
    job: JobSpec,
    inputs: Inputs,
    out: Path,
    emit: Emit,
    stop: StopFlag,
    device: Any,
    resume: Path | None,
    state: Any,
) -> dict[str, Any]:
    from core import checkpoint, tuning
    from core.data.sets import read_set
    from core.loading import load
    from core.reference import Reference
    from core.saver import Saver
    from core.train import Trainer, steps_of

    emit("phase", phase="load")
    loaded = load(job, inputs, {"train": read_set("train", spec.data.train, inputs)}, device)
    tuning.hold(loaded.model, job)
    data = loaded.sets["train"]
    examples = {"retain": data.examples}
    check = checkpoint.data_check(loaded.sets, {})
    trainer = Trainer(job, loaded.model, examples, Reference(), steps_of(job, examples))
    if resume and state:
        checkpoint.check_same_run(state, spec_digest=job.digest(), input_model=loaded.digest, data_check=check)
        checkpoint.restore(resume, trainer, state)

    emit("phase", phase="train")
    earlier = state.seconds if state else 0.0
    saves = Saver(out / "checkpoints", trainer, loaded.digest, check, [], emit, 2, earlier)
    trainer.run(emit, stop, saves, lambda: False)
    result = {
        "spec_digest": spec.digest(),
        "spec": spec.model_dump(mode="json"),
        "input_model": loaded.digest,
        "rows": len(data.examples),
        "answer_tokens": data.answer_tokens,
        "too_long": len(data.too_long),
        "steps": trainer.steps,
        "losses": [point["loss"] for point in trainer.curve],
        "final_loss": trainer.loss,
        "seconds": round(saves.seconds, 3),
    }
    tuning.deliver(loaded.model, loaded.encoder.tokenizer, out / "model", job, loaded.start)
    return _finished(out, result, emit)


def _finished(out: Path, result: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    from core.environment import versions
    from core.report.digest import file_digests, model_digest

    whole = {**result, "output_model": model_digest(file_digests(out / "model")), "versions": versions()}
    draft = out / f"{RESULT}.part"
    draft.write_text(json.dumps(whole, indent=1, ensure_ascii=False))
    draft.replace(out / RESULT)
    emit("done", model=str(out / "model"), loss=whole["final_loss"])
    return whole


def _check_alone(spec: FinetuneSpec) -> None:
    asked, place = spec.training.processes, started_as()
    if asked not in (None, 1) or place is not None:
        count = place.size if place else asked
        message = "Fine-tuning ahead of a request runs in one process. Allowed: 1."
        raise SpecError([Problem("training.processes", count, message)])


def _already_done(spec: FinetuneSpec, out: Path) -> dict[str, Any] | None:
    try:
        result = json.loads((out / RESULT).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if result.get("spec_digest") != spec.digest():
        raise CheckpointError(f"{out} holds the result of another spec; use an empty output folder")
    return dict(result)


if __name__ == "__main__":
    main()
