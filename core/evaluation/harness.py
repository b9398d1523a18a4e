"""Benchmarks of lm-evaluation-harness, run on the model in memory: `lm_eval.<task>.<metric>`, each with its interval.

A value is lm-eval's own. What could not be read or run is absent, with the reason, and all else runs.
"""

import copy
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from core.errors import LetheError
from core.evaluation.harness_tasks import Metric, Unit, named, quietly, units
from core.evaluation.harness_values import Documents, averaged, measured
from core.events import StopFlag
from core.report.schema import Absent, Measurement
from core.spec.evaluation import LmEval

Progress = Callable[[int, int], None]
Scored = dict[Metric, Documents]


def check(spec: LmEval) -> None:
    """Whether every task exists, before a weight is read. Raises SpecError naming field, value and nearest names."""
    units(spec)


def run(
    model: PreTrainedModel,
    tokenizer: Any,
    spec: LmEval,
    *,
    batch_tokens: int,
    max_length: int,
    resamples: int,
    seed: int,
    stop: StopFlag,
    progress: Progress | None = None,
) -> dict[str, Measurement]:
    """Every metric of every task and group by its full name; `progress` counts what the request names.

    `max_length` is in tokens; `seed` is that of few-shot examples, and of texts that a task wants drawn. Model and
    tokenizer stay as they are, and so does every generator of random numbers. Of several processes each must call it,
    and does all of the work. Raises SpecError as `check` does, and Stopped between batches.
    """
    # A metric that a task's own code takes from the hub would run code from there.
    os.environ["HF_EVALUATE_OFFLINE"] = "1"
    manager, wanted = units(spec)
    from core.evaluation.harness_model import InMemory

    found: dict[str, Measurement] = {}
    with quietly():
        # The copy is given a padding token.
        lm = InMemory(model, copy.deepcopy(tokenizer), batch_tokens=batch_tokens, max_length=max_length, stop=stop)
        harness = _Harness(manager, lm, spec, resamples, seed)
        for done, unit in enumerate(wanted):
            stop.check()
            with _seeded(seed, model.device):
                found |= harness.measure(unit)
            if progress:
                progress(done + 1, len(wanted))
    return found


@dataclass(frozen=True)
class _Harness:
    """lm-eval with a model, as the request wants it."""

    manager: Any
    lm: Any
    spec: LmEval
    resamples: int
    seed: int

    def measure(self, unit: Unit) -> dict[str, Measurement]:
        """The unit's metrics; those that its files declare are absent where it cannot be read or run."""
        what = f"{'group' if unit.grouped else 'task'} {unit.name}"
        if unit.refused:
            return _absent(unit, unit.refused)
        try:
            loaded = self.manager.load([unit.name])
        except Exception as error:
            # What libraries say to data that is not there is of any type.
            return _absent(unit, f"the data of {what} could not be read: {_said(error)}")
        try:
            scored = {name: self._score(name, task) for name, task in loaded["tasks"].items()}
        except (LetheError, MemoryError, RuntimeError):
            # A stop, or the device's.
            raise
        except Exception as error:
            return _absent(unit, f"{what} could not be run: {_said(error)}")
        found: dict[str, Measurement] = {}
        for name, metrics in scored.items():
            values = (measured(documents, self.resamples) for documents in metrics.values())
            found |= dict(zip(named(name, list(metrics)), values, strict=True))
        for group in loaded["groups"].values():
            found |= self._aggregate(group, scored)
        return found

    def _score(self, name: str, task: Any) -> Scored:
        """Runs a task: what it says of each document, by metric and filter."""
        from lm_eval import evaluate
        from lm_eval.api.metrics import mean

        shots, asked = task.get_config("num_fewshot"), self.spec.num_fewshot
        # As with lm-eval's own command, a task that sets 0 keeps it.
        task.set_config(key="num_fewshot", value=(shots or 0) if asked is None or shots == 0 else asked)
        task.set_fewshot_seed(seed=self.seed)
        # lm-eval gives each document's scores only together with its text, unless what sums them up keeps them.
        task.aggregation = _Kept
        wanted: dict[str, Any] = {"tasks": {name: task}}
        told = evaluate(self.lm, wanted, limit=self.spec.limit, bootstrap_iters=0, log_samples=False)
        kept = {_metric(key): value for key, value in told["results"][name].items() if _is_value(key)}
        sums = type(task).aggregation(task)
        return {metric: Documents(entries, sums.get(metric[0], mean)) for metric, entries in kept.items()}

    def _aggregate(self, group: Any, scored: Mapping[str, Scored]) -> dict[str, Measurement]:
        """The metrics that a group makes of its tasks', each task's documents drawn anew among themselves."""
        values = {name: _values(metrics) for name, metrics in scored.items()}
        by_size = {entry.metric: entry.weight_by_size for entry in group.aggregate_metric_list or []}
        found = {}
        for key, value in group.aggregate(values).items():
            if _is_value(key):
                metric = _metric(key)
                names = [task.task_name for task in group.get_all_tasks() if metric in scored[task.task_name]]
                sizes = [values[name]["sample_len"] if by_size[metric[0]] else 1 for name in names]
                weights = [size / sum(sizes) for size in sizes]
                found[metric] = averaged(value, [scored[name][metric] for name in names], weights, self.resamples)
        return dict(zip(named(group.name, list(found)), found.values(), strict=True))


class _Kept(dict[str, Any]):
    """Aggregations that sum nothing up: of every metric the list of what documents scored."""

    def __missing__(self, metric: str) -> Any:
        return list


def _is_value(key: str) -> bool:
    """Whether it is a metric with its filter, among what lm-eval says of a task: `acc,none`, not `acc_stderr,none`."""
    return "," in key and "_stderr," not in key


def _metric(key: str) -> Metric:
    name, _, filtered = key.rpartition(",")
    return name, filtered


def _values(metrics: Scored) -> dict[str, Any]:
    """A task's results as a group of lm-eval takes them; NaN where there is no value."""
    found: dict[str, Any] = {"sample_len": max(len(documents.entries) for documents in metrics.values())}
    for (name, filtered), documents in metrics.items():
        try:
            found[f"{name},{filtered}"] = documents.value
        except ValueError:
            found[f"{name},{filtered}"] = math.nan
    return found


def _absent(unit: Unit, reason: str) -> dict[str, Measurement]:
    return {name: Absent(absent=reason) for name in unit.declared}


def _said(error: Exception) -> str:
    """What a library said, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{f': {lines[0]}' if lines else ''}"[:400]


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within the block every global generator of random numbers begins at the seed; after it each goes on as before."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
