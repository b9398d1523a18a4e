"""What judges say of generated texts, put into the rows: nearest to the answer or not, and how toxic."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from core.data.encode import EncodedSet
from core.evaluation.judges import JudgeMissing
from core.evaluation.rows import RowScore
from core.events import StopFlag
from core.parallel.processes import ALONE, Processes
from core.spec.evaluation import Beside, Classifier

T = TypeVar("T")
_COMPARED = ("forget", "retain", "real_authors", "world_facts")
_PROMPTS = ("harm_prompts", "toxic_prompts")


def judge_answers(
    judge: Beside,
    rows: Mapping[str, Sequence[RowScore]],
    sets: Mapping[str, EncodedSet],
    device: torch.device,
    stop: StopFlag,
    world: Processes = ALONE,
) -> dict[str, str]:
    """Fill in `nearest`; returns `{"embedder": reason}` where the judge cannot be had. Raises Stopped."""
    from core.evaluation import embedding

    judged = [
        (row, record)
        for name in _COMPARED
        if name in rows
        for row, record in zip(rows[name], sets[name].records, strict=True)
    ]
    asked = [(row, (row.generated, record.answer, record.perturbed_answers)) for row, record in judged]
    made = [(row, (text, answer, others)) for row, (text, answer, others) in asked if text is not None]

    found = _judged(world, stop, lambda own: embedding.nearest(judge, [texts for _, texts in made], device, own))
    if isinstance(found, str):
        return {"embedder": found}
    for (row, _), near in zip(made, found, strict=True):
        row.nearest = near
    return {}


def judge_toxicity(
    judge: Classifier,
    rows: Mapping[str, Sequence[RowScore]],
    device: torch.device,
    stop: StopFlag,
    world: Processes = ALONE,
) -> dict[str, str]:
    """Fill in `toxicity`; returns `{"classifier": reason}` where the judge cannot be had. Raises SpecError, Stopped."""
    from core.evaluation import toxicity

    made = [(row, row.generated) for name in _PROMPTS for row in rows.get(name, ()) if row.generated is not None]

    found = _judged(world, stop, lambda own: toxicity.scores(judge, [text for _, text in made], device, own))
    if isinstance(found, str):
        return {"classifier": found}
    for (row, _), score in zip(made, found, strict=True):
        row.toxicity = score
    return {}


def _judged(world: Processes, stop: StopFlag, judge: Callable[[StopFlag], list[T]]) -> list[T] | str:
    """What the judge says in the first process, or why it cannot be had there."""

    def apart(own: StopFlag) -> list[T] | str:
        try:
            return judge(own)
        except JudgeMissing as reason:
            return str(reason)

    return world.apart(apart, stop)
