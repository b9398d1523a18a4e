"""Where on this machine the models and data sets lie that a spec names only by id. The worker fills it in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import Problem, SpecError
from core.spec.job import AliasedModel, JobSpec, LocalModel, ModelReference


@dataclass(frozen=True)
class Inputs:
    """Ids and aliases to local paths. A run without the service has none; a spec that names one is then refused."""

    models: Mapping[str, Path] = field(default_factory=dict)
    datasets: Mapping[str, Path] = field(default_factory=dict)
    earlier: Path | None = None  # the list of earlier jobs on the model's line, see core.earlier

    def model(self, spec: JobSpec) -> Path:
        """The folder of the model to change. Raises SpecError for an id that has no folder here."""
        if isinstance(spec.model, AliasedModel):
            return _found(self.models, spec.model.alias, "model.alias", "model.path")
        return self.folder(spec.model, "model")

    def folder(self, model: ModelReference, field: str) -> Path:
        """The folder of a model that the spec names in this field. Raises SpecError for an id without one here."""
        if isinstance(model, LocalModel):
            return Path(model.path)
        return _found(self.models, model.id, f"{field}.id", f"{field}.path")

    def dataset(self, dataset: str) -> Path:
        """The data set's file. Raises SpecError, naming the source's field, for an id that has no file here."""
        return _found(self.datasets, dataset, "dataset", "a source with a path, such as jsonl")


def _found(known: Mapping[str, Path], name: str, param: str, instead: str) -> Path:
    if name not in known:
        raise SpecError([Problem(param, name, f"'{name}' is known to the service only. Allowed here: {instead}.")])
    return known[name]
