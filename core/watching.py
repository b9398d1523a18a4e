"""Looks along the way: the gates on a subset, every n steps.

With `training.stop_when` they end training as soon as they hold, and choose what is delivered: of the looks inside the
utility budget the one with the most forgetting.

Most looks only force the answers. Gates on generated texts are asked of fewer rows, where all else would let the look
be delivered or end training, each time after twice as many looks. Nothing here draws a random number that training
would miss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.evaluation import METRICS, Evidence
from core.evaluation.evidence import Rows
from core.evaluation.rows import RowScore
from core.evaluation.scorer import Scorer
from core.looks import Bar, Look, Values
from core.parallel.sharding import spread
from core.report.schema import Measured
from core.spec.gates import Gate
from core.spec.metrics import info
from core.train import Trainer

BEST = "best.safetensors"
# Of what training costs, looks may cost this share; a step costs three forward passes over its rows.
_SHARE, _STEP = 0.1, 3
_TEXTS = ("rouge_l", "rouge_l_f1", "repetition", "entropy")
_ALWAYS = ("probability", "exact_memorization", "extraction_strength")
_SETS = ("forget", "retain", "holdout")
# Apart from the streams of training and attacks.
_STREAM = 7
# Texts are asked of a quarter of the rows, or of this many.
_FEWEST = 8
_RESAMPLES = 200


@dataclass
class Watcher:
    """`looks` so far, in their order; `best` is the step whose weights lie in `folder`, None where there is none."""

    scorer: Scorer
    trainer: Trainer
    folder: Path
    looks: list[Look] = field(default_factory=list)
    best: int | None = None

    def __post_init__(self) -> None:
        spec = self.scorer.spec
        self.stop_when = spec.training.stop_when
        self.quick = [gate for gate in spec.gates if info(gate.metric).watched and self._there(gate)]
        self.slow = [gate for gate in spec.gates if _of_texts(gate) and self._there(gate)] if self.stop_when else []
        self.rows = {name: self._rows(name) for name in _SETS if name in self.scorer.sets}
        gated = {name for gate in (*self.quick, *self.slow) for name in _gated(gate)}
        always = {f"{name}.{metric}" for name in ("forget", "retain") for metric in _ALWAYS}
        self.metrics = [name for name in METRICS if name in gated | always and set(info(name).sets) <= self.rows.keys()]
        # Only what something is asked of is looked at.
        asked = {split for name in self.metrics for split in info(name).sets}
        self.rows = {name: rows for name, rows in self.rows.items() if rows and name in asked}
        self.bar = Bar(self.quick, self.slow, self._budget())
        self.every = self._every()
        self._held: dict[str, Tensor] | None = None

    def begin(self) -> None:
        """Look at the model as it is before the first step, with which later looks are compared; and make up for a look
        that was broken off."""
        if self.stop_when and not self.looks:
            before = self.scorer.rows("before")
            self._told({**self._forced(before), **(self._texts(before) if self.slow else {})})
        # A run that was stopped in the middle of a look has it still before it.
        step = self.trainer.step
        if 0 < step < self.trainer.steps and not (self.looks and self.looks[-1]["step"] == step):
            self()

    def __call__(self) -> bool:
        """Between two steps: look where one is due; whether training may end here."""
        if not self.rows or self.trainer.step % self.every:
            return False
        return self.look()

    def look(self, *, last: bool = False) -> bool:
        """Look now; whether training may end here. Of a look that is broken off nothing is kept. The last look of all
        asks for texts wherever it could be delivered."""
        values = self._forced()
        if self.stop_when is None:
            self._told(values)
            return False
        if self.slow and self._worth_texts(values, last):
            values = {**values, **self._texts()}
        most = self._most()
        look = self._told(values)
        if look["within_budget"] and look["forgetting"] >= most:
            self._keep()
        return self.enough

    @property
    def enough(self) -> bool:
        """Whether at the last look every gate that can be looked at held."""
        return bool(self.stop_when and self.looks and self.looks[-1].get("enough"))

    def close(self) -> None:
        """The last step has not been looked at yet, where training came to its end."""
        if self.stop_when and self.looks[-1]["step"] != self.trainer.step:
            self.look(last=True)

    @property
    def chosen(self) -> int:
        """The step whose weights are delivered: that of the best look, and without one the last."""
        return self.trainer.step if self.best is None else self.best

    def choose(self) -> None:
        """Put the weights of the chosen step into the model."""
        if self.chosen == self.trainer.step:
            return
        kept = load_file(self._file())
        with torch.no_grad():
            for name, p in self.trainer.named:
                p.copy_(spread(kept[name], p))

    @property
    def files(self) -> list[Path]:
        """What a checkpoint must hold so that another process can go on choosing. All processes must ask."""
        return [self._file()] if self.best is not None else []

    def _there(self, gate: Gate) -> bool:
        return all(name in self.scorer.sets and name in _SETS for name in gate.sets)

    def _rows(self, name: str) -> list[int]:
        count, spec = len(self.scorer.sets[name].records), self.scorer.spec
        if self.stop_when is None:
            return list(range(min(count, spec.evaluation.watch_rows)))
        drawn = np.random.default_rng((spec.seed, _STREAM, _SETS.index(name))).permutation(count)
        return sorted(drawn[: self.stop_when.rows].tolist())

    def _every(self) -> int:
        """Steps between looks: as asked, or so that they cost no more than their share. A function of spec and data
        alone, or a resumed run would look elsewhere."""
        spec = self.scorer.spec
        asked = self.stop_when.every if self.stop_when else spec.evaluation.watch_every
        if asked is not None:
            return asked
        tokens = {name: [len(e.ids) for e in data.examples] for name, data in self.scorer.sets.items()}
        look = sum(self._tokens(name, row) for name, rows in self.rows.items() for row in rows)
        step = sum(
            spec.training.batch_size * float(np.mean(tokens[name])) for name in self.trainer.names if name in tokens
        )
        affordable = math.ceil(look / (_SHARE * _STEP * max(step, 1.0)))
        return max(1, affordable, 0 if self.stop_when else math.ceil(self.trainer.steps / 10))

    def _tokens(self, name: str, row: int) -> int:
        """Tokens of a row in a look: with its other answers where the truth ratio is looked at."""
        data = self.scorer.sets[name]
        others = data.variants(row, self.scorer.encoder) if f"{name}.truth_ratio" in self.metrics else ()
        return len(data.examples[row].ids) + sum(example.answer_tokens for _, example in others if example is not None)

    def _forced(self, known: Rows | None = None) -> Values:
        """What teacher forcing shows of the model as it is; of rows `known` already nothing is computed again."""
        metrics = [name for name in self.metrics if not _text(name)]
        variants = {name for name in self.rows if f"{name}.truth_ratio" in metrics}
        moments = any(metric.startswith("membership.min_k_plus_plus") for metric in metrics)
        found = {
            name: self._scored(name, rows, known, variants=name in variants, moments=moments, generate=False)
            for name, rows in self.rows.items()
        }
        return _measured(metrics, found)

    def _texts(self, known: Rows | None = None) -> Values:
        """What generated texts show, of the first few of the rows."""
        metrics = [name for name in self.metrics if _text(name)]
        asked = {split for name in metrics for split in info(name).sets}
        found = {
            name: self._scored(name, rows[: max(_FEWEST, len(rows) // 4)], known, forced=False)
            for name, rows in self.rows.items()
            if name in asked
        }
        return _measured(metrics, found)

    def _scored(self, name: str, rows: Sequence[int], known: Rows | None, **how: bool) -> list[RowScore]:
        if known is not None:
            return [known[name][row] for row in rows]
        return self.scorer.look(name, rows, self.trainer.step, self.scorer.how(**how))

    def _told(self, values: Values) -> Look:
        """The look that these values amount to, the same one in every process; told and noted."""
        world, step = self.trainer.processes, self.trainer.step
        numbers: Look = {name: m.value for name, m in values.items()}
        if self.stop_when:
            numbers = self.bar.judged(values, self.looks, texts=any(map(_text, values)))
        numbers = world.from_first(lambda: numbers)
        self.scorer.emit("watch", step=step, metrics=numbers)
        self.looks.append({"step": step, **numbers})
        return self.looks[-1]

    def _worth_texts(self, values: Values, last: bool) -> bool:
        return self.trainer.processes.agree(self.bar.worth_texts(values, self.looks, self._most(), last))

    def _budget(self) -> list[Gate]:
        if self.stop_when is None or any(info(gate.metric).about == "utility" for gate in self.quick):
            return []
        if "retain" not in self.scorer.sets:
            return []
        return [Gate(metric="retain.probability", relative_to="before", at_least=self.stop_when.budget)]

    def _most(self) -> float:
        """The most forgetting of the looks so far that were inside the budget."""
        return max((look["forgetting"] for look in self.looks[1:] if look["within_budget"]), default=0.0)

    def _keep(self) -> None:
        """Remember these weights, in the first process's main memory; a file is made of them when one is needed."""
        self.best = self.trainer.step
        self._held = self.trainer.processes.in_memory(self.trainer.named, copy=True)

    def _file(self) -> Path:
        """The best look's weights as a file, which the first process writes."""
        file = self.folder / BEST

        def write() -> None:
            if self._held is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                draft = self.folder / f"{BEST}.part"
                # A checkpoint may hold the old file as its own, by a link: it is replaced, never written over.
                save_file(self._held, draft)
                draft.replace(file)

        self.trainer.processes.from_first(write)
        self._held = None
        return file


def _gated(gate: Gate) -> list[str]:
    beside = gate.on_holdout if gate.relative_to == "holdout" else None
    return [gate.metric, *([beside] if beside else [])]


def _text(metric: str) -> bool:
    return metric.partition(".")[2] in _TEXTS


def _of_texts(gate: Gate) -> bool:
    return gate.metric.partition(".")[0] in _SETS and _text(gate.metric)


def _measured(metrics: Sequence[str], rows: Rows) -> Values:
    found = {name: METRICS[name](Evidence(rows), _RESAMPLES) for name in metrics}
    return {name: m for name, m in found.items() if isinstance(m, Measured)}
