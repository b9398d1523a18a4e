"""EDITS: what a method does to the weights other than by optimizer steps, by the method's name.

`before` runs ahead of training, `after` when the last step is taken; a method without a row here only trains.
"""

from collections.abc import Callable
from dataclasses import dataclass

from core.edits.context import Context
from core.edits.influence import influence
from core.edits.retrain import begin_from_base
from core.edits.task_vector import subtract


@dataclass(frozen=True)
class Edit:
    """The weights changed in place, before or after training."""

    before: Callable[[Context], None] | None = None
    after: Callable[[Context], None] | None = None


EDITS: dict[str, Edit] = {
    "retrain": Edit(before=begin_from_base),
    "task_vector": Edit(after=subtract),
    "influence": Edit(after=influence),
}

__all__ = ["EDITS", "Context", "Edit"]
