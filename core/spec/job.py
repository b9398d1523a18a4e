"""JobSpec: a whole forget request, and the one way to read it from outside."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import AwareDatetime, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from core.errors import Problem, SpecError
from core.spec.attacks import ATTACKS
from core.spec.base import Spec, conflict, nearest, sendable, shown
from core.spec.evaluation import Evaluation
from core.spec.gates import Gate, Gates
from core.spec.methods import ALIASES, FORGET_TERMS, Method
from core.spec.metrics import info
from core.spec.models import AliasedModel, LocalModel, ModelReference, RegisteredModel, TargetModel
from core.spec.optimizers import OPTIMIZERS, AdamW, Optimizer
from core.spec.presets import expand
from core.spec.profiles import from_profile, with_profile
from core.spec.retain import RETAIN_TERMS, SCHEDULES
from core.spec.sources import SOURCES, Data
from core.spec.training import Training
from core.spec.wording import worded

Request = TypeVar("Request", bound=Spec)


class JobSpec(Spec):
    """What was asked. Everything here is validated without loading a weight, and is hashed before the run."""

    shorthands: ClassVar[tuple[str, ...]] = ("preset",)

    model: TargetModel
    data: Data
    method: Method
    optimizer: Optimizer = AdamW()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    profile: Literal["erasure", "copyright", "harm"] | None = Field(
        None, description="default gates and attacks for what the request is about; own gates go before them"
    )
    gates: Gates = Field(default_factory=list, max_length=100)
    seed: int = Field(0, ge=0, lt=2**31)
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; part of what makes a run repeatable")
    reason: Literal["gdpr_art_17", "copyright", "harm", "contract", "other"] = "other"
    reference: str | None = Field(None, max_length=200, description="the requester's case number")
    received_at: AwareDatetime | None = Field(
        None, description="when the request for erasure came in; its due date counts from here (absent: now)"
    )
    priority: Literal["high", "normal", "low"] = Field(
        "normal", description="of jobs that wait, the higher goes first, then the one that is due first"
    )
    batch: bool = Field(
        False,
        description="may share one run with the principal's other requests on the same model that ask for the same",
    )

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
        on = getattr(self.optimizer, "curvature_on", "forget")
        if on != "forget" and method not in _TRAINING_NOTHING:
            said = f"data.retain is required by optimizer.curvature_on '{on}'. Allowed without it: forget."
            raise conflict("optimizer.curvature_on", on, said)
        return self

    @model_validator(mode="after")
    def _gates_can_be_measured(self) -> "JobSpec":
        of_profile = [Gate.model_validate(gate) for gate in from_profile(self.profile)]
        for i, gate in enumerate(self.gates):
            if gate not in of_profile and (lacking := _lacking(self, gate)):
                said = f"{lacking} is required by the gate on '{gate.metric}'."
                raise conflict(f"gates.{i}.metric", gate.metric, said)
        return self

    @model_validator(mode="after")
    def _stops_for_something(self) -> "JobSpec":
        if self.training.stop_when is None:
            return self
        if self.method.name in _NO_STEPS:
            said = f"The method '{self.method.name}' takes no steps to stop. Allowed: null."
            raise conflict("training.stop_when", self.training.stop_when.model_dump(mode="json"), said)
        watched = [gate for gate in self.gates if info(gate.metric).watched and self.data.given.issuperset(gate.sets)]
        if not any(gate.speaks_of_forgetting for gate in watched):
            said = (
                "training.stop_when needs a gate on forgetting that can be looked at along the way, without generating "
                "a text: forget.probability, forget.truth_ratio, forget.exact_memorization, forget.extraction_strength "
                "or membership by loss, zlib, min_k or min_k_plus_plus."
            )
            raise conflict("training.stop_when", self.training.stop_when.model_dump(mode="json"), said)
        return self

    @model_validator(mode="after")
    def _nothing_of_its_own_to_share(self) -> "JobSpec":
        """Of a shared run all sets but the forget set are the same for all."""
        retrained = self.evaluation.retrained
        if self.batch and self.data.self_retain:
            said = "cannot be used with batch true: what one request retains would be its own. Allowed: false."
            raise conflict("data.self_retain", True, f"data.self_retain {said}")
        if self.batch and retrained is not None and retrained.rows is not None:
            said = "cannot be used with batch true: rows are of one forget set. Allowed: evaluation.retrained.model."
            raise conflict("evaluation.retrained.rows", retrained.rows, f"evaluation.retrained.rows {said}")
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

    def foreseen(self) -> list[str]:
        """Why the verdict cannot be `passed` whatever comes of the run: a sentence each; none where it can."""
        unmeasured: dict[str, list[str]] = {}
        for gate in self.gates:
            if lacking := _lacking(self, gate):
                unmeasured.setdefault(lacking, []).append(f"'{gate.metric}'")
        told = [
            f"gates: The verdict cannot be passed: {lacking} is lacking, without which nobody can measure "
            f"{', '.join(metrics)}."
            for lacking, metrics in unmeasured.items()
        ]
        if not any(gate.speaks_of_forgetting for gate in self.gates):
            told.append("gates: The verdict cannot be passed: no gate speaks of forgetting. A profile has such gates.")
        return told

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the resolved spec (defaults filled in, keys sorted), as 64 hex digits."""
        return digest_of(self.model_dump(mode="json"))


def _lacking(spec: JobSpec, gate: Gate) -> str | None:
    """The field without which the gate's metric cannot be measured; None where all are there."""
    for name in gate.sets:
        if name not in spec.data.given:
            return f"data.{name}"
    evaluation, of = spec.evaluation, gate.metric.split(".")
    for need in info(gate.metric).needs:
        if need == "attacks":
            if of[0] not in [attack.label for attack in evaluation.attacks]:
                return f"The attack '{of[0]}' in evaluation.attacks"
        elif need == "lm_eval":
            task = gate.metric.removeprefix("lm_eval.").rpartition(".")[0]
            # A group is measured with its members, whose names begin with its own.
            asked = evaluation.lm_eval.tasks if evaluation.lm_eval else []
            if not any(task == name or task.startswith(f"{name}_") for name in asked):
                return f"The task '{task}' in evaluation.lm_eval.tasks"
        elif need != "membership" and getattr(evaluation, need) is None:
            return f"evaluation.{need}"
    if of[0] == "membership":
        score = "min_k" if of[1].startswith("min_k_") and of[1] != "min_k_plus_plus" else of[1]
        if score not in evaluation.membership:
            return f"'{score}' in evaluation.membership"
    return None


def digest_of(resolved: Mapping[str, Any]) -> str:
    """`JobSpec.digest` of a spec that was resolved elsewhere, perhaps by a Lethe that knows other fields."""
    canonical = json.dumps(resolved, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse(data: Any) -> JobSpec:
    """Read a request from decoded JSON.

    Raises SpecError with every problem found: the field, its value, and what is allowed.
    """
    return validated(JobSpec, with_profile(expand(data)))


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
    # knows may have a tag's name, and so may a set.
    loc = error["loc"]
    last = len(loc) - 1 if kind == "unknown_field" else None
    path = [str(p) for i, p in enumerate(loc) if p not in _TAGS or i == last or loc[i - 1 : i] == ("data",)]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = context["discriminator"].strip("'")
        allowed = context.get("expected_tags")
        every = _CHOICES["source" if tag == "source" else next(part for part in reversed(path) if not part.isdecimal())]
        choices = [name for name in every if allowed is None or name in ALIASES or f"'{name}'" in allowed]
        path.append(tag)
        value = value.get(tag) if isinstance(value, dict) else value
        known = nearest("" if value is None else str(value), choices)
        message = f"Field '{tag}' is required.{known}" if value is None else f"Unknown {tag} {shown(value)}.{known}"
    elif kind == "conflict":
        path, value = [*path, *context["param"].split(".")], context["value"]
    else:
        message, value = worded(error), None if kind == "missing" else value
    return Problem(".".join(path), sendable(value), message)


# They take no optimizer step at all; these want every weight in one piece.
_TRAINING_NOTHING = ("guard", "origin")
_NO_STEPS = (*_TRAINING_NOTHING, "task_vector", "influence")
_WHOLE_OPTIMIZERS = {
    "sophia_h": "its curvature needs second derivatives",
    "adamw_8bit": "its state in eight bits is of whole tensors",
}
_WHOLE_METHODS = {"task_vector", "influence", "retrain"}

_TAGS = {
    *FORGET_TERMS,
    *RETAIN_TERMS,
    *ATTACKS,
    *SCHEDULES,
    *OPTIMIZERS,
    *SOURCES,
    "registered_model",
    "aliased_model",
    "local_model",
}
_CHOICES: dict[str, Iterable[str]] = {
    "method": [*FORGET_TERMS, *ALIASES],
    "retain": RETAIN_TERMS,
    "schedule": SCHEDULES,
    "optimizer": OPTIMIZERS,
    "source": SOURCES,
    "attacks": ATTACKS,
}

__all__ = ["AliasedModel", "JobSpec", "LocalModel", "ModelReference", "RegisteredModel", "digest_of", "parse"]
