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
    if isinstance(source, JsonLines):
        if not path.is_file():
            problems.append(Problem(param, source.path, f"There is no file {path}."))
    else:
        files = [path / f"{source.split}{ending}" for ending in (".json", ".jsonl")]
        found = [file for file in files if file.is_file()]
        if not found:
            problems.append(Problem(param, source.path, f"There is no split '{source.split}' in the folder {path}."))
        elif any(confined(str(file), roots) is None for file in found):
            problems.append(Problem(param, source.path, f"The split '{source.split}' is a link that leads elsewhere."))
    return source.model_copy(update={"path": str(path)})


_SETTING = "LETHE_DATA_ROOTS"
