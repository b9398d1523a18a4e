"""Whether forgetting lasts: what requests before this one removed, measured on the model that this one delivers.

MUSE's sustainability (arXiv:2407.06460) asks what repeated requests do to a model; this asks what they undo.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from core import environment
from core import model as models
from core.data.encode import EncodedSet, encode
from core.evaluation import Evidence, measured
from core.evaluation.judged import judge_answers
from core.evaluation.score import How, score
from core.events import Emit, StopFlag
from core.parallel.processes import ALONE, Processes
from core.report.schema import Absent, Measurement
from core.spec.job import JobSpec
from core.spec.records import Record
from core.tokens import Encoder


def measured_again(
    spec: JobSpec, sets: Sequence[Sequence[Record]], folder: Path, emit: Emit, stop: StopFlag
) -> list[dict[str, Measurement]]:
    """The forget set's own metrics of each of the sets, as `spec` measures them, of the model in `folder`.

    Raises ModelError, OutOfMemory, and Stopped between batches.
    """
    found = []
    with environment.memory_for(spec):
        device = environment.prepare(spec.threads or environment.available_threads())
        model, tokenizer = models.load(folder, device)
        system = getattr(spec.method, "system_prompt", None)
        encoder = models.encoder(model, tokenizer, spec.data.prompt, spec.data.max_length, system)
        for done, records in enumerate(sets):
            emit("progress", phase="score_earlier", done=done, total=len(sets))
            found.append(of_set(spec, model, encoder, encode(records, encoder, "forget"), stop))
        emit("progress", phase="score_earlier", done=len(sets), total=len(sets))
    return found


def of_set(
    spec: JobSpec,
    model: PreTrainedModel,
    encoder: Encoder,
    data: EncodedSet,
    stop: StopFlag,
    world: Processes = ALONE,
) -> dict[str, Measurement]:
    """The forget set's own metrics of one set, as `spec` measures them. Raises OutOfMemory, and Stopped between
    batches."""
    evaluation = spec.evaluation
    how = How(evaluation.batch_tokens, evaluation.max_new_tokens, evaluation.precision, moments=False)
    rows = {"forget": score(model, encoder, data, how, stop=stop, world=world)}
    missing = {"embedder": "evaluation.embedder was not given"}
    if evaluation.embedder is not None:
        missing = judge_answers(evaluation.embedder, rows, {"forget": data}, model.device, stop, world)
    metrics = measured(Evidence(rows, missing=missing), evaluation.bootstrap)
    if wrong := sum(not row.finite for row in rows["forget"]):
        reason = Absent(absent=f"the loss of {wrong} of {len(data.records)} rows is not a finite number")
        metrics = dict.fromkeys(metrics, reason)
    return {name: metric for name, metric in metrics.items() if name.startswith("forget.")}
