"""JobSpec: a whole forget request, and the one way to read it from outside."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from core.errors import Problem, SpecError
from core.spec.base import Spec, nearest, quotable
from core.spec.evaluation import Evaluation, Gates
from core.spec.methods import ALIASES, FORGET_TERMS, Method
from core.spec.metrics import METRICS
from core.spec.models import LocalModel, ModelReference, RegisteredModel
from core.spec.optimizers import OPTIMIZERS, AdamW, Optimizer
from core.spec.presets import expand
from core.spec.retain import RETAIN_TERMS, SCHEDULES
from core.spec.sources import SOURCES, Data
from core.spec.training import Training

Request = TypeVar("Request", bound=Spec)


class JobSpec(Spec):
    """What was asked. Everything here is validated without loading a weight, and is hashed before the run."""

    model: ModelReference
    data: Data
    method: Method
    optimizer: Optimizer = AdamW()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    gates: Gates = Field(default_factory=list, max_length=100)
    seed: int = Field(0, ge=0, lt=2**31)
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; part of what makes a run repeatable")
    reason: Literal["gdpr_art_17", "copyright", "harm", "contract", "other"] = "other"
    reference: str | None = Field(None, max_length=200, description="the requester's case number")

    @model_validator(mode="after")
    def _retain_set_where_needed(self) -> "JobSpec":
        if not self.data.has_retain:
            if self.method.needs_retain:
                raise PydanticCustomError(
                    "missing_retain",
                    "data.retain is required by the method '{method}'.",
                    {"method": self.method.name, "param": "data.retain"},
                )
            if self.method.retain.name != "none":
                raise PydanticCustomError(
                    "missing_retain",
                    "data.retain is required by the retain term '{term}'. Give a retain set, or use retain 'none'.",
                    {"term": self.method.retain.name, "param": "data.retain"},
                )
            for i, gate in enumerate(self.gates):
                if METRICS[gate.metric].set == "retain":
                    raise PydanticCustomError(
                        "missing_retain",
                        "data.retain is required by the gate on '{metric}'.",
                        {"metric": gate.metric, "param": f"gates.{i}.metric"},
                    )
            if getattr(self.optimizer, "curvature_on", "forget") != "forget":
                raise PydanticCustomError(
                    "missing_retain",
                    "data.retain is required by optimizer.curvature_on = '{on}'. Allowed without it: forget.",
                    {"on": self.optimizer.curvature_on, "param": "optimizer.curvature_on"},  # type: ignore[union-attr]
                )
        return self

    @model_validator(mode="after")
    def _something_to_tune(self) -> "JobSpec":
        adapter, method = self.training.adapter, self.method.name
        for field in ("adapter", "layers"):
            if method in ("guard", "origin") and getattr(self.training, field) is not None:
                said = "The method '{method}' trains no weight. Allowed: null."
                raise PydanticCustomError("conflict", said, {"method": method, "param": f"training.{field}"})
        if method == "retrain" and adapter is not None and adapter.deliver == "adapter":
            said = "Adapters of the method 'retrain' fit its base, not the model of the request. Allowed: 'merged'."
            raise PydanticCustomError("conflict", said, {"param": "training.adapter.deliver"})
        return self

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the resolved spec (defaults filled in, keys sorted), as 64 hex digits."""
        return digest_of(self.model_dump(mode="json"))


def digest_of(resolved: Mapping[str, Any]) -> str:
    """`JobSpec.digest` of a spec that was resolved elsewhere, perhaps by a Lethe that knows other fields."""
    canonical = json.dumps(resolved, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse(data: Any) -> JobSpec:
    """Read a request from decoded JSON.

    Raises SpecError with every problem found: the field, its value, and what is allowed.
    """
    return validated(JobSpec, expand(data))


def validated(kind: type[Request], data: Any) -> Request:
    """The data as this kind of request. Raises SpecError with every problem found."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise SpecError([_problem(e) for e in error.errors(include_url=False)]) from None


def _problem(error: ErrorDetails) -> Problem:
    context = error.get("ctx", {})
    kind = error["type"]
    # A discriminated union puts its tag into the location; a requester knows fields, not tags.
    path = [str(part) for part in error["loc"] if part not in _TAGS]
    value = error["input"]
    message = error["msg"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = context["discriminator"].strip("'")
        allowed = context.get("expected_tags")
        every = _CHOICES["source" if tag == "source" else path[-1]]
        choices = [name for name in every if allowed is None or name in ALIASES or f"'{name}'" in allowed]
        path.append(tag)
        value = value.get(tag) if isinstance(value, dict) else value
        known = nearest("" if value is None else str(value), choices)
        message = f"Field '{tag}' is required.{known}" if value is None else f"Unknown {tag} {_short(value)}.{known}"
    elif kind == "missing_retain":
        path, value = context["param"].split("."), None
    elif kind == "conflict":
        path = context["param"].split(".")
        value = functools.reduce(lambda part, field: part[field], path, value)
    elif kind == "missing":
        message, value = "This field is required.", None
    elif kind in _WANTS_OBJECT:
        message = f"Input should be a JSON object (got {_short(value)})."
    elif kind not in _SAYS_ENOUGH:
        message = f"{message} (got {_short(value)})."
    return Problem(".".join(path), _sendable(value), message)


def _short(value: Any) -> str:
    try:
        return quotable(json.dumps(value, ensure_ascii=False, default=str))
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} that cannot be shown"


def _sendable(value: Any) -> Any:
    """The value, or its short form where no JSON document could carry it: NaN, half a surrogate pair, a deep nest."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (RecursionError, TypeError, ValueError):
        return _short(value)
    return value


_TAGS = {*FORGET_TERMS, *RETAIN_TERMS, *SCHEDULES, *OPTIMIZERS, *SOURCES, "registered_model", "local_model"}
_CHOICES: dict[str, Iterable[str]] = {
    "method": [*FORGET_TERMS, *ALIASES],
    "retain": RETAIN_TERMS,
    "schedule": SCHEDULES,
    "optimizer": OPTIMIZERS,
    "source": SOURCES,
}
_WANTS_OBJECT = {"model_type", "model_attributes_type", "dict_type"}
_SAYS_ENOUGH = {
    "unknown_field",
    "unknown_metric",
    "gate_sides",
    "two_lengths",
    "same_set",
    "two_refusals",
    "refusals_unused",
    "two_layers",
    "conflict",
}

__all__ = ["JobSpec", "LocalModel", "ModelReference", "RegisteredModel", "digest_of", "parse"]
