"""Which tasks of lm-evaluation-harness a request names, and what each will measure, as far as its file says.

Names are those of lm-eval: a task, a tag (each of its tasks), or a group (its tasks, and their aggregate).
"""

import difflib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from core.errors import Problem, SpecError
from core.spec.base import quotable
from core.spec.evaluation import LmEval

Config = Mapping[str, Any]
Metric = tuple[str, str]  # its name, and that of its filter

# What of a group's file is about the group; the rest sets fields of its tasks.
_OF_GROUPS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag")

# lm-eval's tag holds truthfulqa_gen too, which writes 817 texts and compares them by BLEU and ROUGE: it must be named.
_MEANT = {"truthfulqa": ("truthfulqa_mc1", "truthfulqa_mc2")}


@dataclass(frozen=True)
class Unit:
    """What is read and run at once: one task, or a group with all its tasks.

    `tasks` holds the file of each task by its name, `aggregates` what a group makes of its tasks' metrics.
    `position`: where the request names it.
    """

    name: str
    position: int
    tasks: Mapping[str, Config]
    aggregates: tuple[Metric, ...] = ()
    grouped: bool = False

    @property
    def declared(self) -> list[str]:
        """Full names of the metrics that it will have; a task's own name where its file does not say."""
        found = named(self.name, self.aggregates)
        for name, config in self.tasks.items():
            found += named(name, _declared(config)) if "class" not in config else [f"lm_eval.{name}"]
        return found

    @property
    def refused(self) -> str | None:
        """Why it is not run: it would run code that is neither lm-eval's nor of the request's own folder."""
        return next((reason for name, config in self.tasks.items() if (reason := _refused(name, config))), None)


def units(spec: LmEval) -> tuple[Any, list[Unit]]:
    """lm-eval's TaskManager, and what the request names, each task once. Reads no data.

    Raises SpecError for a folder that is none, a name that no task has, and a task both alone and in a group.
    """
    if spec.include_path is not None and not os.path.isdir(spec.include_path):  # noqa: PTH112
        raise SpecError([Problem("evaluation.lm_eval.include_path", spec.include_path, "There is no such folder.")])
    with quietly():
        manager = _manager_for(spec)
    index = manager.task_index
    unknown = [(i, name) for i, name in enumerate(spec.tasks) if name not in index]
    if unknown:
        raise SpecError([Problem(f"evaluation.lm_eval.tasks.{i}", name, _unknown(name, index)) for i, name in unknown])
    found: dict[str, Unit] = {}
    for position, name in enumerate(spec.tasks):
        for unit in _named(name, position, index):
            _apart(unit, found.values())
            found.setdefault(unit.name, unit)
    return manager, list(found.values())


@contextmanager
def quietly() -> Iterator[None]:
    """Within the block nothing reaches the terminal: lm-eval tells much, and its bars would run through ours."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):  # noqa: PTH123
            yield
    finally:
        log.setLevel(level)


def named(task: str, metrics: Sequence[Metric]) -> list[str]:
    """Full names of a task's metrics, as a gate spells them; the filter is told where there are several.

    `lm_eval.gsm8k.exact_match@strict_match` is lm-eval's `exact_match,strict-match` of gsm8k.
    """
    several = len({filtered for _, filtered in metrics}) > 1
    return [f"lm_eval.{task}.{_plain(f'{m}@{filtered}' if several else m)}" for m, filtered in metrics]


@lru_cache(maxsize=4)
def _manager(include_path: str | None, published: bool) -> Any:
    # Takes seconds, as does the index of the published tasks.
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=published)


def _manager_for(spec: LmEval) -> Any:
    """One that knows the request's own folder alone, where that is enough."""
    if spec.include_path is not None:
        own = _manager(spec.include_path, False)
        if all(_whole(name, own.task_index) for name in spec.tasks):
            return own
    return _manager(spec.include_path, True)


def _whole(name: str, index: Mapping[str, Any]) -> bool:
    """Whether the index has the name, and all that it stands for."""
    if name not in index:
        return False
    return all(inner in index for inner in _members((index[name].cfg or {}).get("task")))


def _members(listed: Any) -> Iterator[str]:
    """The names in a group's list, at every depth."""
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, str):
            yield item
        elif "group" in item and "task" in item:
            yield from _members(item["task"])
        else:
            yield str(item.get("task", item.get("group")))


def _unknown(name: str, index: Mapping[str, Any]) -> str:
    # All of them would be fifteen thousand.
    close = difflib.get_close_matches(name.casefold(), index, n=10, cutoff=0.5)
    hint = f"Nearest: {', '.join(close)}." if close else "No task has a name like it; `lm-eval ls tasks` lists them."
    return f"Unknown task '{quotable(name)}'. {hint}"


def _named(name: str, position: int, index: Mapping[str, Any]) -> Iterator[Unit]:
    entry = index[name]
    if entry.kind.name == "TAG":
        for task in _MEANT.get(name, sorted(entry.tags)):
            yield Unit(task, position, {task: index[task].cfg})
    elif entry.kind.name == "GROUP":
        tasks = dict(_leaves(name, entry.cfg, {}, index))
        yield Unit(name, position, tasks, tuple(_aggregates(entry.cfg, tasks)), grouped=True)
    else:
        yield Unit(name, position, {name: entry.cfg})


def _leaves(group: str, config: Config, given: Config, index: Mapping[str, Any]) -> Iterator[tuple[str, Config]]:
    """The tasks of a group, as lm-eval names and builds them, each with its file and what the group sets otherwise."""
    given = {**{field: value for field, value in config.items() if field not in _OF_GROUPS}, **given}
    listed = config.get("task")
    for item in listed if isinstance(listed, list) else []:
        fields: Config = item if isinstance(item, dict) else {"task": item}
        name = fields.get("group", fields.get("task"))
        entry = index.get(name)
        if "group" in fields and entry is None:
            yield from _leaves(f"{group}::{name}", fields, given, index)
        elif entry is None:
            yield f"{group}::{name}", {**given, **fields}
        elif entry.kind.name == "GROUP":
            yield from _leaves(name, entry.cfg, {**given, **fields}, index)
        else:
            for task in sorted(entry.tags) if entry.kind.name == "TAG" else [name]:
                yield task, {**index[task].cfg, **given, **fields}


def _apart(unit: Unit, others: Any) -> None:
    """Raises SpecError where a group's task is asked for beside it: the two may differ, and would have one name."""
    for other in others:
        twice = sorted(unit.tasks.keys() & other.tasks.keys())
        if twice and unit.name != other.name and (unit.grouped or other.grouped):
            said = f"'{twice[0]}' is asked for twice: by '{other.name}' and by '{unit.name}'."
            raise SpecError([Problem(f"evaluation.lm_eval.tasks.{unit.position}", unit.name, said)])


def _aggregates(config: Config, tasks: Mapping[str, Config]) -> Iterator[Metric]:
    wanted = config.get("aggregate_metric_list") or []
    for metric in [wanted] if isinstance(wanted, dict) else wanted:
        listed = metric.get("filter_list") or sorted({name for own in tasks.values() for name in _filters(own)})
        for filtered in [listed] if isinstance(listed, str) else listed:
            yield str(metric["metric"]), str(filtered)


def _declared(config: Config) -> list[Metric]:
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    default = [{"metric": metric} for metric in DEFAULT_METRIC_REGISTRY[config.get("output_type", "generate_until")]]
    metrics = [str(entry["metric"]) for entry in config.get("metric_list") or default]
    # A function of the task's folder is known by its own name.
    names = [metric.rpartition(".")[2] if _is_function(metric) else metric for metric in metrics]
    return [(name, filtered) for filtered in _filters(config) for name in names]


def _filters(config: Config) -> list[str]:
    return [str(entry["name"]) for entry in config.get("filter_list") or []] or ["none"]


def _is_function(metric: str) -> bool:
    """Whether a file names a metric by a function of its folder: the index holds its path."""
    return os.sep in metric


def _refused(name: str, config: Config) -> str | None:
    import lm_eval.api.metrics  # noqa: F401 -- it fills the registry
    from lm_eval.api.registry import METRIC_REGISTRY

    if config.get("unsafe_code"):
        return f"task {name} runs code that the model writes, which is never done here"
    if config.get("process_results") is not None:
        return None
    for entry in config.get("metric_list") or []:
        metric = str(entry["metric"])
        # lm-eval looks on the hub for what it does not know itself.
        if entry.get("hf_evaluate") or not (_is_function(metric) or metric in METRIC_REGISTRY):
            return f"metric '{metric}' of task {name} is code of the hub, which is never run"
    return None


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_@") else "_" for c in name)
