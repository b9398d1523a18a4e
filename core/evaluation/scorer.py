"""A run's own scoring: both sets before and after, and the looks along the way, told as events."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from core.data.encode import EncodedSet
from core.errors import Diverged, ModelError
from core.evaluation import metrics_of
from core.evaluation.score import RowScore, score
from core.events import Emit, StopFlag
from core.parallel.processes import ALONE, Processes
from core.report.schema import Absent, Measurement
from core.spec.job import JobSpec
from core.tokens import Encoder


@dataclass(frozen=True)
class Scorer:
    """Scores both sets with the spec's settings, saying how far it is."""

    spec: JobSpec
    model: PreTrainedModel
    encoder: Encoder
    sets: Mapping[str, EncodedSet]
    emit: Emit
    stop: StopFlag
    world: Processes = ALONE

    def measure(self, when: str, step: int) -> dict[str, Measurement]:
        """Every metric of every set. Raises Diverged naming the step, or ModelError where that is 0."""
        phase = f"score_{when}"
        self.emit("phase", phase=phase)
        metrics: dict[str, Measurement] = {}
        finished, total = 0, sum(len(s.records) for s in self.sets.values())
        for name, data in self.sets.items():

            def progress(done: int, of: int, base: int = finished, rows: int = len(data.records)) -> None:
                self.emit("progress", phase=phase, done=base + rows * done // of, total=total)

            rows = self._score(data, step, progress=progress)
            metrics |= metrics_of(name, rows, self.spec.evaluation.bootstrap)
            finished += len(data.records)
        self.emit("scores", when=when, metrics={name: m.model_dump() for name, m in metrics.items()})
        return metrics

    def watch(self, step: int) -> None:
        """A cheap look at the first rows of each set: nothing is generated, no random number is drawn."""
        count = self.spec.evaluation.watch_rows
        if not count:
            return
        values: dict[str, float] = {}
        for name, data in self.sets.items():
            rows = self._score(data, step, generate=False, rows=count)
            metrics = metrics_of(name, rows, 100)
            values |= {key: m.value for key, m in metrics.items() if not isinstance(m, Absent)}
        self.emit("watch", step=step, metrics=values)

    def _score(self, data: EncodedSet, step: int, **how: Any) -> list[RowScore]:
        evaluation = self.spec.evaluation
        rows = score(
            self.model,
            self.encoder,
            data,
            batch_tokens=evaluation.batch_tokens,
            max_new_tokens=evaluation.max_new_tokens,
            stop=self.stop,
            world=self.world,
            **how,
        )
        # No loss of training follows the last update, so only this would show what it did.
        if wrong := [row.nll for row in rows if not row.finite]:
            if step:
                raise Diverged(step, wrong[0])
            raise ModelError(f"the model as given has a loss of {wrong[0]} on {len(wrong)} records", param="model")
        return rows
