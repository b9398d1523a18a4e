"""A request's model and sets. What is wrong with either is told before a weight is read, the cheapest checks first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from core import model as models
from core import tuning
from core.checks import check_against
from core.data.encode import EncodedSet, encode
from core.data.inputs import Inputs
from core.data.trained_on import check_records
from core.edits.retrain import check_base
from core.errors import ModelError
from core.evaluation import scorer
from core.optim import check_available
from core.report.digest import digest_of_folder
from core.spec.job import JobSpec
from core.spec.records import Record
from core.tokens import Encoder


@dataclass(frozen=True)
class Loaded:
    """The input model, ready to train, with its digest, the folder that training begins at, and the sets in its
    tokens."""

    model: PreTrainedModel
    digest: str
    start: Path
    encoder: Encoder
    sets: dict[str, EncodedSet]


def load(
    spec: JobSpec,
    inputs: Inputs,
    records: Mapping[str, Sequence[Record]],
    device: torch.device,
    expected: str | None = None,
) -> Loaded:
    """Check, then load. `expected` is what the model's digest must be. Raises the errors of core.errors."""
    folder, start = inputs.model(spec), tuning.start(spec, inputs)
    models.check_folder(folder)
    check_against(spec, folder)
    tuning.check(spec, folder)
    check_base(start, folder)
    check_records(spec, records)
    check_available(spec.optimizer)
    scorer.check(spec, inputs)
    digest = digest_of_folder(folder)
    if expected is not None and digest != expected:
        raise ModelError(f"{folder} is no longer what was registered: its digest is {digest}", param="model")
    model, tokenizer = models.load(folder, device)
    tuning.prepare(model, spec)
    encoder = models.encoder(model, tokenizer, spec.data.prompt, spec.data.max_length)
    sets = {name: encode(rows, encoder, name) for name, rows in records.items()}
    return Loaded(model, digest, start, encoder, sets)
