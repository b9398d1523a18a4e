"""RowScore: what was measured of one record. Every metric reads these rows and nothing else.

Rows go to Parquet files, one a set, so that metrics can be computed again without the model. They are derived from the
records one by one: whoever keeps such a file must protect it as the set itself.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError

Numbers = NDArray[np.float32]
VERSION = "1"


def _none() -> Numbers:
    return np.zeros(0, dtype=np.float32)


@dataclass
class RowScore:
    """Losses are in nats; a field is None where the record has no such answer or the number was not asked for.

    `log_probs` and `hits` have one entry an answer token, end of sequence included where `ends`; `mean_log_p` and
    `std_log_p` are the mean and the standard deviation of log p(v) over the model's own prediction there (Min-K%++).
    """

    nll: float = 0.0  # of the whole answer, end of sequence included
    tokens: int = 0  # how many tokens that is
    ends: bool = False  # whether the last of them is end of sequence
    log_probs: Numbers = field(default_factory=_none)  # (tokens,)
    hits: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))  # (tokens,) argmax is right
    mean_log_p: Numbers = field(default_factory=_none)  # (tokens,), empty where not asked for
    std_log_p: Numbers = field(default_factory=_none)  # (tokens,), empty where not asked for
    paraphrase_loss: float | None = None  # token mean
    perturbed_losses: list[float] = field(default_factory=list)  # token means
    zlib_bytes: int | None = None  # length of the compressed answer text
    reference_loss: float | None = None  # token mean under the reference model, end of sequence not counted
    grad_norm: float | None = None  # Euclidean norm of the gradient of the token-mean loss
    generated: str | None = None
    rouge_l: float | None = None  # recall
    rouge_l_f1: float | None = None
    repetition: float | None = None  # share of trigrams of the generated text that it has said before
    entropy: float | None = None  # bits, of its bigrams and trigrams
    nearest: bool | None = None  # the generated text is nearer to the answer than to every perturbation
    toxicity: float | None = None  # of the generated text, 0 to 1
    continued: dict[str, float] = field(default_factory=dict)  # of a passage: `rouge_l_100`
    bleu: dict[str, list[int]] = field(default_factory=dict)  # of a passage: `100`: 4 matches, 4 totals, 2 lengths

    @property
    def finite(self) -> bool:
        """Whether every loss is a number at all; those of a model that has diverged are not."""
        return math.isfinite(sum(self.perturbed_losses, self.nll) + (self.paraphrase_loss or 0.0))

    @property
    def counted(self) -> int:
        """Answer tokens without the end of sequence: what memorisation and membership count."""
        return self.tokens - self.ends

    @property
    def right(self) -> int:
        """Of those, how many teacher-forced argmax gets right."""
        return int(self.hits[: self.counted].sum())


def write_rows(file: Path, rows: Sequence[RowScore], about: Mapping[str, Any]) -> Path:
    """One set's rows as a Parquet file that only this user can read; `about` says of what model and set, in JSON."""
    import pyarrow
    from pyarrow import parquet

    columns = {f.name: _column(f.name, [getattr(row, f.name) for row in rows]) for f in fields(RowScore)}
    table = pyarrow.table(columns)
    meta = {b"lethe": json.dumps({"version": VERSION, **about}, sort_keys=True).encode()}
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
        parquet.write_table(table.replace_schema_metadata(meta), opened, compression="zstd")
    return draft.replace(file)


def file_of(folder: Path, when: str, name: str) -> Path | None:
    """The file of a set's rows in a folder of rows, or of a run or an evaluation that left one; None without it."""
    places = (folder / f"{when}-{name}.parquet", folder / "rows" / f"{when}-{name}.parquet")
    return next((file for file in places if file.is_file()), None)


def read_rows(file: Path) -> tuple[list[RowScore], dict[str, Any]]:
    """The rows and what was said about them. Raises DataError for a file that is no such thing."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
        about = json.loads((table.schema.metadata or {})[b"lethe"])
        if about.pop("version") != VERSION:
            raise DataError(f"{file} was written by another version of Lethe")
        columns = {f.name: table.column(f.name).to_pylist() for f in fields(RowScore)}
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} holds no scored rows: {type(error).__name__}") from None
    return [
        RowScore(**{name: _value(name, column[i]) for name, column in columns.items()}) for i in range(table.num_rows)
    ], about


_ARRAYS = {"log_probs": np.float32, "mean_log_p": np.float32, "std_log_p": np.float32, "hits": np.bool_}
_MAPPINGS = ("continued", "bleu")


def _column(name: str, values: Sequence[Any]) -> Any:
    import pyarrow

    types = {
        "nll": pyarrow.float64(),
        "tokens": pyarrow.int64(),
        "ends": pyarrow.bool_(),
        "hits": pyarrow.list_(pyarrow.bool_()),
        "perturbed_losses": pyarrow.list_(pyarrow.float64()),
        "zlib_bytes": pyarrow.int64(),
        "generated": pyarrow.string(),
        "nearest": pyarrow.bool_(),
        "continued": pyarrow.map_(pyarrow.string(), pyarrow.float64()),
        "bleu": pyarrow.map_(pyarrow.string(), pyarrow.list_(pyarrow.int64())),
    }
    kind = types.get(name, pyarrow.list_(pyarrow.float32()) if name in _ARRAYS else pyarrow.float64())
    if name in _MAPPINGS:
        values = [list(value.items()) for value in values]
    return pyarrow.array(values, type=kind)


def _value(name: str, value: Any) -> Any:
    if name in _ARRAYS:
        return np.asarray(value, dtype=_ARRAYS[name])
    return dict(value) if name in _MAPPINGS else value
