"""Looks along the way: the gates on a subset, every n steps.

With `training.stop_when` they end training as soon as they hold, and choose what is delivered: of the looks inside the
utility budget the one with the most forgetting.

Most looks only force the answers. Gates on generated texts are asked of fewer rows, when all others hold, and where
they then fail, after twice as many looks each time. Nothing here draws a random number that training would miss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from core.evaluation import METRICS, Evidence
from core.evaluation.evidence import Rows
from core.evaluation.rows import RowScore
from core.evaluation.scorer import Scorer
from core.parallel.sharding import spread
from core.report.schema import Measured, Measurement
from core.report.verdict import apply, beyond, observed
from core.spec.gates import Gate
from core.spec.metrics import info
from core.train import Trainer

Look = dict[str, float]
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
        self.every = self._every()

    def begin(self) -> None:
        """Look at the model as it is before the first step, with which later looks are compared; and make up for a look
        that was broken off."""
        if self.stop_when and not self.looks:
            before = self.scorer.rows("before")
            self._tell({**self._forced(before), **(self._texts(before) if self.slow else {})})
        # A run that was stopped in the middle of a look has it still before it.
        step = self.trainer.step
        if 0 < step < self.trainer.steps and not (self.looks and self.looks[-1]["step"] == step):
            self()

    def __call__(self) -> bool:
        """Between two steps: look where one is due; whether training may end here."""
        if not self.rows or self.trainer.step % self.every:
            return False
        return self.look()

    def look(self) -> bool:
        """Look now; whether training may end here. Of a look that is broken off nothing is kept."""
        look = self._tell(self._forced())
        if self.stop_when is None:
            return False
        if look["forgetting"] == 1 and look["within_budget"] and self.slow and self._worth_a_text():
            self.looks.pop()
            seen = {name: value for name, value in look.items() if name in self.metrics}
            look = self._tell({**seen, **self._texts()})
        if look["within_budget"] and look["forgetting"] >= self._most():
            self._keep()
        return self.enough

    @property
    def enough(self) -> bool:
        """Whether at the last look every gate that can be looked at held."""
        return bool(self.stop_when and self.looks and self.looks[-1].get("enough"))

    def close(self) -> None:
        """The last step has not been looked at yet, where training came to its end."""
        if self.stop_when and self.looks[-1]["step"] != self.trainer.step:
            self.look()

    def choose(self) -> int:
        """Put the chosen look's weights into the model; returns its step. Without one, the last step's stay."""
        step = self.trainer.step
        if self.stop_when is None or self.best is None or self.best == step:
            return step
        kept = load_file(self.folder / BEST)
        with torch.no_grad():
            for name, p in self.trainer.named:
                p.copy_(spread(kept[name], p))
        return self.best

    @property
    def files(self) -> list[Path]:
        """What a checkpoint must hold so that another process can go on choosing."""
        return [self.folder / BEST] if self.best is not None else []

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
        look = sum(tokens[name][row] for name, rows in self.rows.items() for row in rows)
        step = sum(
            spec.training.batch_size * float(np.mean(tokens[name])) for name in self.trainer.names if name in tokens
        )
        affordable = math.ceil(look / (_SHARE * _STEP * max(step, 1.0)))
        return max(1, affordable, 0 if self.stop_when else math.ceil(self.trainer.steps / 10))

    def _forced(self, known: Rows | None = None) -> Look:
        """What teacher forcing shows of the model as it is; of rows `known` already nothing is computed again."""
        metrics = [name for name in self.metrics if not _text(name)]
        variants = {name for name in self.rows if f"{name}.truth_ratio" in metrics}
        moments = any(metric.startswith("membership.min_k_plus_plus") for metric in metrics)
        found = {
            name: self._scored(name, rows, known, variants=name in variants, moments=moments, generate=False)
            for name, rows in self.rows.items()
        }
        return _values(metrics, found)

    def _texts(self, known: Rows | None = None) -> Look:
        """What generated texts show, of the first few of the rows."""
        metrics = [name for name in self.metrics if _text(name)]
        asked = {split for name in metrics for split in info(name).sets}
        found = {
            name: self._scored(name, rows[: max(_FEWEST, len(rows) // 4)], known, forced=False)
            for name, rows in self.rows.items()
            if name in asked
        }
        return _values(metrics, found)

    def _scored(self, name: str, rows: Sequence[int], known: Rows | None, **how: bool) -> list[RowScore]:
        if known is not None:
            return [known[name][row] for row in rows]
        return self.scorer.look(name, rows, self.trainer.step, self.scorer.how(**how))

    def _tell(self, values: Look) -> Look:
        look: Look = {"step": self.trainer.step, **values}
        if self.stop_when:
            look |= self._judged(values, texts=any(map(_text, values)))
            self.scorer.emit("look", **look)
        else:
            self.scorer.emit("watch", step=self.trainer.step, metrics=values)
        self.looks.append(look)
        return look

    def _judged(self, values: Mapping[str, float], texts: bool) -> Look:
        assert self.stop_when
        first = self.looks[0] if self.looks else values
        before, now = _measurements(first), _measurements(values)
        gates = [*self.quick, *(self.slow if texts else [])]
        forgets = [gate for gate in gates if gate.speaks_of_forgetting]
        keeps = [*(gate for gate in gates if gate not in forgets), *self._budget()]
        # Without the texts, which few looks have: with them looks would not compare.
        progress = [_progress(gate, before, now) for gate in self.quick if gate in forgets]
        forgetting = sum(progress) / len(progress)
        within = all(_holds(gate, before, now) for gate in keeps)
        forgotten = forgetting == 1 and all(_holds(gate, before, now) for gate in forgets)
        return {
            "forgetting": forgetting,
            "within_budget": float(within),
            "texts": float(texts),
            "enough": float(forgotten and within and (texts or not self.slow) and bool(self.trainer.step)),
        }

    def _budget(self) -> list[Gate]:
        assert self.stop_when
        if "retain" not in self.rows or any(info(gate.metric).about == "utility" for gate in self.quick):
            return []
        return [Gate(metric="retain.probability", relative_to="before", at_least=self.stop_when.budget)]

    def _most(self) -> float:
        """The most forgetting of the looks before the last that were inside the budget."""
        return max((o["forgetting"] for o in self.looks[1:-1] if o["within_budget"]), default=0.0)

    def _worth_a_text(self) -> bool:
        """Whether texts shall be generated at the look just made: each failure doubles the wait for the next."""
        asked = [i for i, look in enumerate(self.looks[:-1]) if look["texts"] and look["step"]]
        return not asked or len(self.looks) - 1 - asked[-1] >= 2 ** (len(asked) - 1)

    def _keep(self) -> None:
        world, step = self.trainer.processes, self.trainer.step
        weights = {name: world.whole(p) for name, p in self.trainer.named}

        def write() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = self.folder / f"{BEST}.part"
            # A checkpoint may hold the old file as its own, by a link: it is replaced, never written over.
            save_file({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, draft)
            draft.replace(self.folder / BEST)

        world.from_first(write)
        self.best = step


_FEWEST = 1


def _gated(gate: Gate) -> list[str]:
    beside = gate.on_holdout if gate.relative_to == "holdout" else None
    return [gate.metric, *([beside] if beside else [])]


def _text(metric: str) -> bool:
    return metric.partition(".")[2] in _TEXTS


def _of_texts(gate: Gate) -> bool:
    return gate.metric.partition(".")[0] in _SETS and _text(gate.metric)


def _values(metrics: Sequence[str], rows: Rows) -> Look:
    measured = {name: METRICS[name](Evidence(rows), 1) for name in metrics}
    return {name: m.value for name, m in measured.items() if isinstance(m, Measured)}


def _measurements(values: Mapping[str, float]) -> dict[str, Measurement]:
    return {name: Measured(value=value, rows=1, low=None, high=None) for name, value in values.items()}


def _holds(gate: Gate, before: Mapping[str, Measurement], now: Mapping[str, Measurement]) -> bool:
    return apply(gate.model_copy(update={"interval": False}), before, now).outcome == "held"


def _progress(gate: Gate, before: Mapping[str, Measurement], now: Mapping[str, Measurement]) -> float:
    """How far the gate has come from where it stood at first: 1 where it holds, 0 where nothing was gained."""
    value, first = observed(gate, before, now), observed(gate, before, before)
    if value is None or first is None:
        return 0.0
    left, at_first = beyond(gate, value), beyond(gate, first)
    if left <= 0:
        return 1.0
    return max(0.0, 1 - left / at_first) if at_first > 0 else 0.0
