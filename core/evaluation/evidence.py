"""Evidence: the rows of every set that was scored, and what metrics compare them with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.evaluation.rows import RowScore

Rows = Mapping[str, Sequence[RowScore]]


@dataclass(frozen=True)
class Evidence:
    """Rows by the name of their set. `retrained`: the same sets' rows under a model retrained without the forget set,
    empty where there is none. `missing`: why something is not there that was asked for, by the field that asks."""

    rows: Rows
    retrained: Rows = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
