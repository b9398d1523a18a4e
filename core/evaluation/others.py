"""Other models that metrics compare with: one retrained without the forget set, and a reference for membership.

Each is loaded once, scored and let go, so that no more than one stands beside the model that is measured.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from core import model as models
from core.data.encode import EncodedSet, encode
from core.errors import DataError, Problem, SpecError
from core.evaluation.evidence import Rows
from core.evaluation.rows import RowScore, file_of, read_rows
from core.evaluation.score import How, score
from core.events import StopFlag
from core.tokens import Encoder

# The sets that metrics compare with a retrained model's.
COMPARED = ("forget", "holdout")


def scored_elsewhere(
    folder: Path, encoder: Encoder, sets: Mapping[str, EncodedSet], how: How, device: torch.device, stop: StopFlag
) -> Rows:
    """Rows of the compared sets under another model, in its own tokens. Raises ModelError and Stopped."""
    model, tokenizer = models.load(folder, device)
    limit = min(encoder.max_length, models.positions(model))
    own = Encoder(tokenizer, encoder.format, limit, encoder.system)
    return {
        name: score(model, own, encode(sets[name].records, own, name), how, stop=stop)
        for name in COMPARED
        if name in sets
    }


def rows_elsewhere(folder: Path, counts: Mapping[str, int]) -> Rows:
    """Rows of the compared sets that a scoring of another model has left; `counts`: how many each set has.

    Raises DataError where there are none, or of another set.
    """
    param = "evaluation.retrained.rows"
    found: dict[str, Sequence[RowScore]] = {}
    for name in COMPARED:
        if name not in counts:
            continue
        file = file_of(folder, "after", name)
        if file is None:
            raise DataError(f"{param}: {folder} holds no after-{name}.parquet", param=param)
        rows, _ = read_rows(file)
        if len(rows) != counts[name]:
            raise DataError(f"{param}: {folder} holds {len(rows)} rows of {name}, the set {counts[name]}", param=param)
        found[name] = rows
    return found


def reference_losses(
    folder: Path, encoder: Encoder, sets: Mapping[str, EncodedSet], how: How, device: torch.device, stop: StopFlag
) -> dict[str, list[float | None]]:
    """Token-mean losses under the reference, end of sequence not counted, on the very ids of the model measured.

    Raises SpecError for a reference of other tokens, ModelError and Stopped.
    """
    model, tokenizer = models.load(folder, device)
    if tokenizer.get_vocab() != encoder.tokenizer.get_vocab():
        said = "The reference has another tokenizer than the model; its losses would be of other tokens."
        raise SpecError([Problem("evaluation.reference", str(folder), said)])
    found = {}
    for name in COMPARED:
        if name in sets:
            rows = score(model, encoder, sets[name], how, stop=stop)
            found[name] = [
                -float(r.log_probs[: r.counted].astype("float64").mean()) if r.counted else None for r in rows
            ]
    return found
