"""What a service asks of a spec beyond its being well-formed: registered models, data from where data may lie, and
nothing that could run a caller's code."""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from api.paths import confined, listed
from api.store import references
from core.errors import DataError, Problem, SpecError
from core.spec.evaluation import Beside, Evaluation, LmEval
from core.spec.job import JobSpec
from core.spec.layouts import listing, shards
from core.spec.methods import Method
from core.spec.models import LocalModel
from core.spec.sources import SAME_SET, JsonLines, Published, Source, Upload, same_set

_REGISTERED = 'The service runs registered models only: POST /models, then give {"id": "mdl_..."}.'
_OFFLINE = "The service fetches nothing from the hub: give the path of a folder that holds the same files."
_SETTING = "LETHE_DATA_ROOTS"
_MOST_FILES = 1000  # in a folder that is looked through while a caller waits


def admit(spec: JobSpec, data_roots: Sequence[Path]) -> JobSpec:
    """The spec with its paths resolved, so that a link on the way to one, changed later, leads nowhere else.

    Links among the files inside a folder are looked at here, but not resolved. Raises SpecError with all problems.
    """
    problems = list(_local_models(spec))
    given = spec.data.sources()
    sets = {name: _resolved(source, f"data.{name}", data_roots, problems) for name, source in given.items()}
    for name in ("retain", "holdout"):
        # Two spellings of one path are equal only now.
        if name in sets and same_set(sets[name], sets["forget"]):
            problems.append(Problem(f"data.{name}", getattr(given[name], "path", None), SAME_SET.format(name)))
    changes = {
        "data": spec.data.model_copy(update=sets),
        "method": _with_refusals(spec, data_roots, problems),
        "evaluation": _with_paths(spec.evaluation, data_roots, problems),
    }
    if problems:
        raise SpecError(problems)
    return spec.model_copy(update=changes)


def names_paths(spec: JobSpec) -> bool:
    """Whether there is something to be looked up before the spec can be admitted, or to be refused."""
    evaluation = spec.evaluation
    beside = (evaluation.retrained, evaluation.embedder, evaluation.classifier, evaluation.lm_eval)
    models = (spec.model, getattr(spec.method, "base", None), evaluation.reference)
    return (
        any(not isinstance(source, Upload) for source in spec.data.sources().values())
        or any(isinstance(model, LocalModel) for model in models)
        or getattr(spec.method, "refusals_file", None) is not None
        or any(part is not None for part in beside)
    )


def _local_models(spec: JobSpec) -> Iterator[Problem]:
    for field, model in references.models(spec.model_dump(mode="json")).items():
        if "path" in model:
            yield Problem(f"{field}.path", model["path"], _REGISTERED)


def _with_refusals(spec: JobSpec, roots: Sequence[Path], problems: list[Problem]) -> Method:
    given = getattr(spec.method, "refusals_file", None)
    if given is None:
        return spec.method
    path = confined(given, roots)
    if path is None or not os.path.isfile(path):  # noqa: PTH113 -- Path.is_file raises for a name that is too long
        reason = (
            f"This path is not open to requests. {listed(roots, _SETTING)}"
            if path is None
            else f"There is no file {path}."
        )
        problems.append(Problem("method.refusals_file", given, reason))
    return spec.method.model_copy(update={"refusals_file": str(path)})


def _resolved(source: Source, where: str, roots: Sequence[Path], problems: list[Problem]) -> Source:
    if isinstance(source, Upload):
        return source
    if source.path is None:
        problems.append(Problem(f"{where}.hub", source.hub, f"{_OFFLINE} {listed(roots, _SETTING)}"))
        return source
    path = confined(source.path, roots)
    if path is None:
        reason = f"This path is not open to requests. {listed(roots, _SETTING)}"
        problems.append(Problem(f"{where}.path", source.path, reason))
        return source
    try:
        fault = _fault(source, path, roots)
    except OSError as error:
        fault = ("path", f"This path cannot be read: {error.strerror}.")
    if fault:
        field, reason = fault
        problems.append(Problem(f"{where}.{field}", getattr(source, field), reason))
    return source.model_copy(update={"path": str(path)})


def _fault(source: JsonLines | Published, path: Path, roots: Sequence[Path]) -> tuple[str, str] | None:
    """The field at fault and a sentence, or None."""
    if path.is_file() and (isinstance(source, JsonLines) or source.or_file):
        return None
    if isinstance(source, JsonLines):
        return "path", f"There is no file {path}."
    places = source.places()
    # What a link leads to is not listed either: a message names what it has found.
    folders = {folder for alternative in places for folder, _ in alternative}
    if any(confined(str(path / folder), roots) is None for folder in folders):
        return "path", f"A folder in {path} is a link that leads elsewhere."
    try:
        files = shards(listing(path, folders), places)
    except DataError as error:
        return error.param or "path", f"In the folder {path} {error.message}"
    if any(confined(str(path / file.name), roots) is None for file in files):
        return "path", "A file of this split is a link that leads elsewhere."
    return None


def _with_paths(given: Evaluation, roots: Sequence[Path], problems: list[Problem]) -> Evaluation:
    """The evaluation with its folders resolved."""
    changes: dict[str, Any] = {}
    if given.retrained is not None and given.retrained.rows is not None:
        rows = _folder(given.retrained.rows, "evaluation.retrained.rows", roots, problems)
        changes["retrained"] = given.retrained.model_copy(update={"rows": rows})
    for name in ("embedder", "classifier"):
        beside: Beside | None = getattr(given, name)
        if beside is not None and beside.path is not None:
            path = _folder(beside.path, f"evaluation.{name}.path", roots, problems)
            changes[name] = beside.model_copy(update={"path": path})
        elif beside is not None:
            reason = f"{_OFFLINE} {listed(roots, _SETTING)}"
            problems.append(Problem(f"evaluation.{name}.hub", beside.hub, reason))
    if given.lm_eval is not None:
        problems.extend(_task_files(given.lm_eval))
    return given.model_copy(update=changes)


def _task_files(given: LmEval) -> Iterator[Problem]:
    # The harness takes a name that it does not know for the path of a task file, wherever that leads.
    for i, task in enumerate(given.tasks):
        if "/" in task:
            said = "A task file can run code, so the service takes tasks by name only, such as arc_easy."
            yield Problem(f"evaluation.lm_eval.tasks.{i}", task, said)
    if given.include_path is not None:
        said = "Task files can run code, so the service takes none, only the harness's own tasks. Allowed: null."
        yield Problem("evaluation.lm_eval.include_path", given.include_path, said)


def _folder(given: str, where: str, roots: Sequence[Path], problems: list[Problem]) -> str:
    path = confined(given, roots)
    if path is None:
        problems.append(Problem(where, given, f"This path is not open to requests. {listed(roots, _SETTING)}"))
        return given
    try:
        reason = _stray(path, roots) if path.is_dir() else f"There is no folder {path}."
    except OSError as error:
        reason = f"This path cannot be read: {error.strerror}."
    if reason:
        problems.append(Problem(where, given, reason))
    return str(path)


def _stray(folder: Path, roots: Sequence[Path]) -> str | None:
    """What in a folder might lead out of the roots, in a sentence, or None."""
    entries = (Path(at, name) for at, folders, files in os.walk(folder) for name in (*folders, *files))
    for number, entry in enumerate(itertools.islice(entries, _MOST_FILES + 1)):
        if number == _MOST_FILES:
            return f"This folder holds more than {_MOST_FILES} files. Give the one that holds nothing else."
        if entry.is_symlink() and (entry.is_dir() or confined(str(entry), roots) is None):
            return "A link in this folder leads elsewhere, or to a folder."
    return None
