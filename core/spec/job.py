"""JobSpec: a whole forget request, and the one way to read it from outside."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from core.errors import Problem, SpecError
from core.spec.base import FILE_PATH, Spec, conflict, nearest, sendable, shown
from core.spec.evaluation import Evaluation, Gates
from core.spec.methods import ALIASES, FORGET_TERMS, Method
from core.spec.metrics import METRICS
from core.spec.models import MODEL_ID, LocalModel, ModelReference, RegisteredModel
from core.spec.optimizers import OPTIMIZERS, AdamW, Optimizer
from core.spec.presets import expand
from core.spec.retain import RETAIN_TERMS, SCHEDULES
from core.spec.sources import COLUMN, HUB_ID, NAME, SOURCES, SPLIT, UPLOAD_ID, Data
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
        if self.data.has_retain:
            return self
        method, retain = self.method.name, self.method.retain.name
        if self.method.needs_retain:
            raise conflict("data.retain", None, f"This field is required by the method '{method}'.")
        if retain != "none":
            said = f"This field is required by the retain term '{retain}'. Give a retain set, or use retain 'none'."
            raise conflict("data.retain", None, said)
        for i, gate in enumerate(self.gates):
            if METRICS[gate.metric].set == "retain":
                said = f"data.retain is required by the gate on '{gate.metric}'."
                raise conflict(f"gates.{i}.metric", gate.metric, said)
        on = getattr(self.optimizer, "curvature_on", "forget")
        if on != "forget" and method not in _TRAINING_NOTHING:
            said = f"data.retain is required by optimizer.curvature_on '{on}'. Allowed without it: forget."
            raise conflict("optimizer.curvature_on", on, said)
        return self

    @model_validator(mode="after")
    def _something_to_tune(self) -> "JobSpec":
        training, method = self.training, self.method.name
        for field in ("adapter", "layers"):
            if method in _TRAINING_NOTHING and getattr(training, field) is not None:
                value = training.model_dump(mode="json")[field]
                raise conflict(f"training.{field}", value, f"The method '{method}' trains no weight. Allowed: null.")
        if method == "retrain" and training.adapter is not None and training.adapter.deliver == "adapter":
            said = "Adapters of the method 'retrain' fit its base, not the model of the request. Allowed: 'merged'."
            raise conflict("training.adapter.deliver", "adapter", said)
        return self

    @model_validator(mode="after")
    def _weights_whole_where_needed(self) -> "JobSpec":
        training, method, optimizer = self.training, self.method.name, self.optimizer.name
        if training.sharding == "fsdp":
            beside = "cannot be used with training.sharding 'fsdp'"
            if optimizer in _WHOLE_OPTIMIZERS and method not in _TRAINING_NOTHING:
                others = ", ".join(sorted(OPTIMIZERS.keys() - _WHOLE_OPTIMIZERS.keys()))
                said = f"'{optimizer}' {beside}: {_WHOLE_OPTIMIZERS[optimizer]}. Allowed: {others}."
                raise conflict("optimizer.name", optimizer, said)
            if method in _WHOLE_METHODS:
                said = f"'{method}' {beside}: it changes whole weights. Allowed: training.sharding 'ddp'."
                raise conflict("method.name", method, said)
        if method == "influence" and (training.processes or 1) > 1:
            beside = f"cannot be used with training.processes {training.processes}"
            said = f"'{method}' {beside}: it is solved in one. Allowed: setting training.processes to 1."
            raise conflict("method.name", method, said)
        if method == "influence" and training.precision != "fp32":
            said = f"'{method}' cannot be used with training.precision '{training.precision}'. Allowed: 'fp32'."
            raise conflict("training.precision", training.precision, said)
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
    kind, value, message = error["type"], error["input"], error["msg"]
    # A discriminated union puts its tag into the location; a requester knows fields, not tags. A field that nobody
    # knows may have a tag's name.
    last = len(error["loc"]) - 1 if kind == "unknown_field" else None
    path = [str(part) for i, part in enumerate(error["loc"]) if part not in _TAGS or i == last]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = context["discriminator"].strip("'")
        allowed = context.get("expected_tags")
        every = _CHOICES["source" if tag == "source" else path[-1]]
        choices = [name for name in every if allowed is None or name in ALIASES or f"'{name}'" in allowed]
        path.append(tag)
        value = value.get(tag) if isinstance(value, dict) else value
        known = nearest("" if value is None else str(value), choices)
        message = f"Field '{tag}' is required.{known}" if value is None else f"Unknown {tag} {shown(value)}.{known}"
    elif kind == "conflict":
        path, value = [*path, *context["param"].split(".")], context["value"]
    elif kind == "missing":
        message, value = "This field is required.", None
    elif kind in _WANTS_OBJECT:
        message = f"Input should be a JSON object (got {shown(value)})."
    elif kind == "string_pattern_mismatch" and context["pattern"] in WANTED:
        message = f"Input should be {WANTED[context['pattern']]} (got {shown(value)})."
    elif kind not in _SAYS_ENOUGH:
        message = f"{message} (got {shown(value)})."
    return Problem(".".join(path), sendable(value), message)


# What a text must be, in words, where a pattern says it for programs.
WANTED = {
    FILE_PATH: "a path without a zero character",
    MODEL_ID: "the id of a registered model: mdl_ with what followed it",
    UPLOAD_ID: "the id of an uploaded set: ds_ with what followed it",
    HUB_ID: "an id such as locuslab/TOFU",
    SPLIT: "the name of a split, such as forget01: at most 64 of a-z, 0-9 and _",
    NAME: "a name such as wikitext-2-raw-v1: at most 96 letters, digits, _, - and ., not beginning with - or .",
    COLUMN: "the name of a column: 1 to 200 characters",
}

# They take no optimizer step at all; these want every weight in one piece.
_TRAINING_NOTHING = ("guard", "origin")
_WHOLE_OPTIMIZERS = {
    "sophia_h": "its curvature needs second derivatives",
    "adamw_8bit": "its state in eight bits is of whole tensors",
}
_WHOLE_METHODS = {"task_vector", "influence", "retrain"}

_TAGS = {*FORGET_TERMS, *RETAIN_TERMS, *SCHEDULES, *OPTIMIZERS, *SOURCES, "registered_model", "local_model"}
_CHOICES: dict[str, Iterable[str]] = {
    "method": [*FORGET_TERMS, *ALIASES],
    "retain": RETAIN_TERMS,
    "schedule": SCHEDULES,
    "optimizer": OPTIMIZERS,
    "source": SOURCES,
}
_WANTS_OBJECT = {"model_type", "model_attributes_type", "dict_type"}
_SAYS_ENOUGH = {"unknown_field", "unknown_metric", "gate_sides"}

__all__ = ["JobSpec", "LocalModel", "ModelReference", "RegisteredModel", "digest_of", "parse"]
