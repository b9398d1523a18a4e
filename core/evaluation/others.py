"""Other models that metrics compare with: one retrained without the forget set, and a reference for membership.

Each is loaded once, scored and let go, so that no more than one stands beside the model that is measured.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from core import model as models
from core.data.encode import EncodedSet, encode
from core.data.inputs import Inputs
from core.errors import DataError, ModelError, Problem, SpecError
from core.evaluation.evidence import Rows
from core.evaluation.rows import RowScore, file_of, read_rows
from core.evaluation.score import How, score
from core.events import StopFlag
from core.spec.job import JobSpec
from core.tokens import Encoder

# The sets that metrics compare with a retrained model's.
COMPARED = ("forget", "holdout")
_RETRAINED, _ROWS, _REFERENCE = "evaluation.retrained.model", "evaluation.retrained.rows", "evaluation.reference"


def check_others(spec: JobSpec, inputs: Inputs) -> None:
    """Refuse, before a weight is read, what is no model and no rows. Raises SpecError, ModelError and DataError."""
    wanted, given = spec.evaluation.retrained, spec.data.sources()
    if wanted is not None and wanted.rows is not None:
        for name in COMPARED:
            if name in given:
                _file(Path(wanted.rows), name)
    for model, field in ((wanted.model if wanted else None, _RETRAINED), (spec.evaluation.reference, _REFERENCE)):
        if model is not None:
            _checked(inputs.folder(model, field), field)


def scored_elsewhere(
    folder: Path, encoder: Encoder, sets: Mapping[str, EncodedSet], how: How, device: torch.device, stop: StopFlag
) -> Rows:
    """Rows of the compared sets under another model, in its own tokens and without a system prompt, which is another
    model's. Raises ModelError and Stopped."""
    model, tokenizer = _loaded(folder, device, _RETRAINED)
    own = models.encoder(model, tokenizer, encoder.format, encoder.max_length)
    return {
        name: score(model, own, encode(sets[name].records, own, name), how, stop=stop)
        for name in COMPARED
        if name in sets
    }


def rows_elsewhere(folder: Path, counts: Mapping[str, int]) -> Rows:
    """Rows of the compared sets that a scoring of another model has left; `counts`: how many each set has.

    Raises DataError where there are none, or of another set.
    """
    found: dict[str, Sequence[RowScore]] = {}
    for name in COMPARED:
        if name not in counts:
            continue
        file = _file(folder, name)
        try:
            rows, _ = read_rows(file)
        except DataError as error:
            raise DataError(f"{_ROWS}: {error.message}", param=_ROWS) from None
        if len(rows) != counts[name]:
            said = f"{folder} holds {len(rows)} rows of {name}, the set {counts[name]}"
            raise DataError(f"{_ROWS}: {said}", param=_ROWS)
        found[name] = rows
    return found


def reference_losses(
    folder: Path, encoder: Encoder, sets: Mapping[str, EncodedSet], how: How, device: torch.device, stop: StopFlag
) -> dict[str, list[float | None]]:
    """Token-mean losses under the reference, end of sequence not counted, on the very ids of the model measured.

    Raises SpecError for a reference of other tokens, ModelError and Stopped.
    """
    model, tokenizer = _loaded(folder, device, _REFERENCE)
    if tokenizer.get_vocab() != encoder.tokenizer.get_vocab():
        said = "The reference has another tokenizer than the model; its losses would be of other tokens."
        raise SpecError([Problem(_REFERENCE, str(folder), said)])
    room = models.positions(model)
    found = {}
    for name in COMPARED:
        if name in sets:
            longest = max(len(example.ids) for example in sets[name].examples)
            if longest > room:
                said = f"The reference takes {room} tokens, and a row of {name} has {longest}; lower data.max_length."
                raise SpecError([Problem(_REFERENCE, str(folder), said)])
            rows = score(model, encoder, sets[name], how, stop=stop)
            found[name] = [
                -float(r.log_probs[: r.counted].astype("float64").mean()) if r.counted else None for r in rows
            ]
    return found


def _file(folder: Path, name: str) -> Path:
    file = file_of(folder, "after", name)
    if file is None:
        raise DataError(f"{_ROWS}: {folder} holds no after-{name}.parquet", param=_ROWS)
    return file


def _checked(folder: Path, field: str) -> None:
    try:
        models.check_folder(folder)
    except ModelError as error:
        raise ModelError(f"{field}: {error.message}", param=field) from None


def _loaded(folder: Path, device: torch.device, field: str) -> tuple[PreTrainedModel, Any]:
    try:
        return models.load(folder, device)
    except ModelError as error:
        raise ModelError(f"{field}: {error.message}", param=field) from error
