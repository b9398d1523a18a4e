"""What a service asks of a spec beyond its being well-formed: registered models, and data from where data may lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from api.paths import confined, listed
from core.errors import Problem, SpecError
from core.spec.job import JobSpec, LocalModel
from core.spec.sources import JsonLines, Source, Tofu, Upload

P = TypeVar("P", JsonLines, Tofu)


def admit(spec: JobSpec, data_roots: Sequence[Path]) -> JobSpec:
    """The spec with its paths resolved, so that a link changed later leads nowhere else. Raises SpecError."""
    problems: list[Problem] = []
    if isinstance(spec.model, LocalModel):
        reason = 'The service runs registered models only: POST /models, then give {"id": "mdl_..."}.'
        problems.append(Problem("model.path", spec.model.path, reason))
    forget = _resolved(spec.data.forget, "data.forget.path", data_roots, problems)
    retain = spec.data.retain and _resolved(spec.data.retain, "data.retain.path", data_roots, problems)
    if problems:
        raise SpecError(problems)
    return spec.model_copy(update={"data": spec.data.model_copy(update={"forget": forget, "retain": retain})})


def _resolved(source: Source, param: str, roots: Sequence[Path], problems: list[Problem]) -> Source:
    if isinstance(source, Upload):
        return source
    path = confined(source.path, roots)
    if path is None:
        problems.append(Problem(param, source.path, f"This path is not open to requests. {listed(roots, _SETTING)}"))
        return source
    try:
        reason = _fault(source, path, roots)
    except OSError as error:
        reason = f"This path cannot be read: {error.strerror}."
    if reason:
        problems.append(Problem(param, source.path, reason))
    return source.model_copy(update={"path": str(path)})


def _fault(source: JsonLines | Tofu, path: Path, roots: Sequence[Path]) -> str | None:
    if isinstance(source, JsonLines):
        return None if path.is_file() else f"There is no file {path}."
    files = [path / f"{source.split}{ending}" for ending in (".json", ".jsonl")]
    found = [file for file in files if file.is_file()]
    if not found:
        return f"There is no split '{source.split}' in the folder {path}."
    if any(confined(str(file), roots) is None for file in found):
        return f"The split '{source.split}' is a link that leads elsewhere."
    return None


_SETTING = "LETHE_DATA_ROOTS"
