"""What a service asks of a spec beyond its being well-formed: registered models, and data from where data may lie."""

import os
from collections.abc import Sequence
from pathlib import Path

from api.paths import confined, listed
from core.errors import DataError, Problem, SpecError
from core.spec.job import JobSpec, LocalModel
from core.spec.layouts import listing, shards
from core.spec.methods import Method
from core.spec.sources import SAME_SET, JsonLines, Published, Source, Upload, same_set

_REGISTERED = 'The service runs registered models only: POST /models, then give {"id": "mdl_..."}.'


def admit(spec: JobSpec, data_roots: Sequence[Path]) -> JobSpec:
    """The spec with its paths resolved, so that a link on the way to one, changed later, leads nowhere else.

    Links among the files inside a folder are looked at here, but not resolved. Raises SpecError.
    """
    problems: list[Problem] = []
    if isinstance(spec.model, LocalModel):
        problems.append(Problem("model.path", spec.model.path, _REGISTERED))
    base = getattr(spec.method, "base", None)
    if isinstance(base, LocalModel):
        problems.append(Problem("method.base.path", base.path, _REGISTERED))
    forget = _resolved(spec.data.forget, "data.forget", data_roots, problems)
    retain = spec.data.retain and _resolved(spec.data.retain, "data.retain", data_roots, problems)
    if retain is not None and not problems and same_set(retain, forget):
        # Two spellings of one path are equal only now.
        given = getattr(spec.data.retain, "path", None)
        problems.append(Problem("data.retain", given, SAME_SET))
    method = _with_refusals(spec, data_roots, problems)
    if problems:
        raise SpecError(problems)
    data = spec.data.model_copy(update={"forget": forget, "retain": retain})
    return spec.model_copy(update={"data": data, "method": method})


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
        reason = "The service fetches nothing from the hub: give the path of a folder that holds the same files."
        problems.append(Problem(f"{where}.hub", source.hub, f"{reason} {listed(roots, _SETTING)}"))
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


_SETTING = "LETHE_DATA_ROOTS"
