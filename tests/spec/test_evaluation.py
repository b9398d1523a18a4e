"""What is measured, which attacks are tried, when training stops early: a wrong value is told what is allowed."""

from typing import Any

import pytest

from core.spec.attacks import ATTACK_LABELS, ATTACKS
from core.spec.evaluation import Evaluation
from core.spec.job import parse
from core.spec.metrics import METRICS
from core.spec.training import StopWhen
from tests.spec.test_job import FORGET, GOOD, problems

COMMIT = "0" * 40
KNOWN = "Allowed: few_shot, noise, paraphrase, prefix, quantize, relearn."
ONE_PLACE = "Give exactly one of path (a local folder) and hub (with a revision)."


# `param` is below evaluation; the value is what stands there in the request.
@pytest.mark.parametrize(
    ("evaluation", "param", "value", "message"),
    [
        ({"watch": 1}, "watch", 1, "Did you mean 'watch_rows'? Allowed: attacks, batch_tokens, bootstrap, classifier,"),
        ({"batch_tokens": 63}, "batch_tokens", 63, "greater than or equal to 64 (got 63)"),
        ({"max_new_tokens": 0}, "max_new_tokens", 0, "greater than or equal to 1"),
        ({"precision": "fp16"}, "precision", "fp16", "'fp32' or 'bf16'"),
        ({"watch_every": 0}, "watch_every", 0, "greater than or equal to 1"),
        ({"watch_rows": -1}, "watch_rows", -1, "greater than or equal to 0"),
        ({"bootstrap": 99}, "bootstrap", 99, "greater than or equal to 100"),
        ({"rows": "some"}, "rows", "some", "valid boolean"),
        ({"plots": 2}, "plots", 2, "valid boolean"),
        ({"membership": "loss"}, "membership", "loss", "valid list"),
        ({"membership": ["los"]}, "membership.0", "los", "'loss', 'zlib', 'min_k', 'min_k_plus_plus', 'refer"),
        ({"membership": ["loss"] * 7}, "membership", ["loss"] * 7, "at most 6 items"),
        ({"membership": ["reference"]}, "membership", ["reference"], "needs evaluation.reference, a model to compare"),
        ({"reference": {}}, "reference.path", None, "required"),
        ({"reference": "mdl_x"}, "reference.id", "mdl_x", "id of a registered model"),
        ({"retrained": 7}, "retrained", 7, "JSON object (got 7)"),
        ({"retrained": {}}, "retrained.rows", None, "Give exactly one of model and rows."),
        ({"retrained": {"model": "m", "rows": "r"}}, "retrained.rows", "r", "Give exactly one of model and rows."),
        ({"retrained": {"rows": "a\0"}}, "retrained.rows", "a\0", "a path without a zero character"),
        ({"retrained": {"id": "mdl_x"}}, "retrained.model.id", "mdl_x", "id of a registered model"),
        ({"retrained": {"row": "r"}}, "retrained.row", "r", "Did you mean 'rows'? Allowed: model, rows."),
        ({"embedder": {}}, "embedder.path", None, ONE_PLACE),
        ({"embedder": 7}, "embedder", 7, "JSON object (got 7)"),
        ({"embedder": {"path": "p", "hub": "a/b", "revision": COMMIT}}, "embedder.path", "p", ONE_PLACE),
        ({"embedder": {"hub": "a/b"}}, "embedder.revision", None, "hub needs a revision: a full commit hash."),
        ({"embedder": {"hub": "a/b", "revision": "main"}}, "embedder.revision", "main", "a full commit hash of 40 hex"),
        ({"embedder": {"path": "p", "revision": COMMIT}}, "embedder.revision", COMMIT, "belongs to hub, not to path"),
        ({"embedder": {"hub": "a/b/c"}}, "embedder.hub", "a/b/c", "an id such as locuslab/TOFU"),
        ({"embedder": {"path": "p", "label": "x"}}, "embedder.label", "x", "Allowed: hub, path, revision."),
        ({"classifier": {"path": "p", "label": ""}}, "classifier.label", "", "at least 1 character"),
        ({"lm_eval": ["boolq"]}, "lm_eval", ["boolq"], "JSON object"),
        ({"lm_eval": {}}, "lm_eval.tasks", None, "required"),
        ({"lm_eval": {"tasks": []}}, "lm_eval.tasks", [], "at least 1 item"),
        ({"lm_eval": {"tasks": ["../x"]}}, "lm_eval.tasks.0", "../x", "a task of lm-evaluation-harness, such"),
        ({"lm_eval": {"tasks": ["boolq"], "limit": 0}}, "lm_eval.limit", 0, "greater than or equal to 1"),
        ({"lm_eval": {"tasks": ["boolq"], "num_fewshot": 101}}, "lm_eval.num_fewshot", 101, "than or equal to 100"),
        ({"lm_eval": {"tasks": ["boolq"], "include_path": ""}}, "lm_eval.include_path", "", "at least 1 character"),
        ({"attacks": "relearn"}, "attacks", "relearn", "valid list"),
        ({"attacks": [7]}, "attacks.0", 7, "JSON object (got 7)"),
        ({"attacks": [{}]}, "attacks.0.name", None, f"Field 'name' is required. {KNOWN}"),
        ({"attacks": ["noise", "relern"]}, "attacks.1.name", "relern", f"Did you mean 'relearn'? {KNOWN}"),
        ({"attacks": ["quantize_int8"]}, "attacks.0.name", "quantize_int8", f"Did you mean 'quantize'? {KNOWN}"),
        ({"attacks": ["noise", {"name": "noise", "sigma": 1}]}, "attacks.1.name", "noise", "asked for twice"),
        ({"attacks": ["quantize", {"name": "quantize", "group": 8}]}, "attacks.1.name", "quantize", "asked for twice"),
        ({"attacks": ["noise"] * 9}, "attacks", ["noise"] * 9, "at most"),
        ({"attacks": [{"name": "quantize", "bits": 2}]}, "attacks.0.bits", 2, "4 or 8 (got 2)"),
        ({"attacks": [{"name": "relearn", "rows": 0}]}, "attacks.0.rows", 0, "greater than or equal to 1"),
        ({"attacks": [{"name": "relearn", "on": "holdout"}]}, "attacks.0.on", "holdout", "'forget' or 'retain'"),
        ({"attacks": [{"name": "prefix", "k": 0}]}, "attacks.0.k", 0, "greater than or equal to 1"),
        ({"attacks": [{"name": "few_shot", "shots": 65}]}, "attacks.0.shots", 65, "less than or equal to 64"),
        ({"attacks": [{"name": "noise", "sgma": 1}]}, "attacks.0.sgma", 1, "'sigma'? Allowed: name, sigma."),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_what_is_allowed(
    evaluation: dict[str, Any], param: str, value: Any, message: str
) -> None:
    ((found, at, said),) = problems(GOOD | {"evaluation": evaluation})
    assert (found, at) == (f"evaluation.{param}", value)
    assert message in said


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"attacks": ["relearn"]}, {"attacks": [{"name": "relearn", "rows": 8, "steps": 20}]}),
        ({"retrained": "folder"}, {"retrained": {"model": {"path": "folder"}}}),
        ({"retrained": {"path": "folder"}}, {"retrained": {"model": {"path": "folder"}}}),
        ({"retrained": "mdl_0123456789"}, {"retrained": {"model": {"id": "mdl_0123456789"}}}),
        ({"embedder": "folder"}, {"embedder": {"path": "folder"}}),
        ({"classifier": "folder"}, {"classifier": {"path": "folder", "label": "toxic"}}),
        ({"reference": "folder"}, {"reference": {"path": "folder"}}),
    ],
)
def test_short_forms_are_the_long_ones(short: dict[str, Any], long: dict[str, Any]) -> None:
    one, other = (parse(GOOD | {"evaluation": evaluation}) for evaluation in (short, long))
    assert one == other
    assert parse(one.model_dump(mode="json")).digest() == other.digest()


def test_every_attack_has_metrics_by_its_label() -> None:
    labels = {ATTACKS[name](**fields).label for name in ATTACKS for fields in _kinds(name)}
    assert labels == set(ATTACK_LABELS)
    assert {name.split(".")[0] for name, metric in METRICS.items() if "attacks" in metric.needs} == labels
    every = Evaluation(attacks=[ATTACKS[name](**fields) for name in ATTACKS for fields in _kinds(name)])  # type: ignore[misc]
    assert len(every.attacks) == len(ATTACK_LABELS)


def _kinds(name: str) -> list[dict[str, Any]]:
    several = {"quantize": [{"bits": 4}, {"bits": 8}], "relearn": [{"on": "forget"}, {"on": "retain"}]}
    return several.get(name, [{}])


LOOKS = {"metric": "forget.probability", "at_most": 0.1}
NO_STEPS = "takes no steps to stop. Allowed: null."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gates": []}, "needs a gate on forgetting that can be looked at along the way, without generating a text: "),
        ({"gates": [{"metric": "forget.rouge_l", "at_most": 0.3}]}, "needs a gate on forgetting"),
        ({"gates": [{"metric": "retain.probability", "at_least": 0.9}]}, "needs a gate on forgetting"),
        # Still fluent, or what every model grants: not forgotten.
        ({"gates": [{"metric": "forget.probability", "at_least": 0.1}]}, "needs a gate on forgetting"),
        ({"gates": [{"metric": "forget.probability", "at_most": 1}]}, "needs a gate on forgetting"),
        ({"gates": [{"metric": "forget.entropy", "at_least": 3}]}, "needs a gate on forgetting"),
        ({"gates": [LOOKS], "method": "guard"}, f"The method 'guard' {NO_STEPS}"),
        ({"gates": [LOOKS], "method": "origin"}, f"The method 'origin' {NO_STEPS}"),
        ({"gates": [LOOKS], "method": "task_vector"}, f"The method 'task_vector' {NO_STEPS}"),
        ({"gates": [LOOKS], "method": "influence"}, f"The method 'influence' {NO_STEPS}"),
    ],
)
def test_nothing_to_stop_for_or_nothing_to_stop_is_refused(change: dict[str, Any], message: str) -> None:
    request = GOOD | {"optimizer": "adamw", "training": {"stop_when": "gates"}} | change
    ((param, value, said),) = problems(request)
    assert (param, value) == ("training.stop_when", StopWhen().model_dump())
    assert message in said


@pytest.mark.parametrize(
    ("stop_when", "field", "value", "message"),
    [
        ("gate", "", "gate", 'or null (got "gate")'),
        (True, "", True, "or null (got true)"),
        ({"rows": 0}, ".rows", 0, "greater than or equal to 1"),
        ({"every": 0}, ".every", 0, "greater than or equal to 1"),
        ({"budget": 1.01}, ".budget", 1.01, "less than or equal to 1"),
        ({"bugdet": 1}, ".bugdet", 1, "Did you mean 'budget'? Allowed: budget, every, rows."),
    ],
)
def test_a_wrong_way_to_stop_is_told_what_is_allowed(stop_when: Any, field: str, value: Any, message: str) -> None:
    ((param, at, said),) = problems(GOOD | {"gates": [LOOKS], "training": {"stop_when": stop_when}})
    assert (param, at) == (f"training.stop_when{field}", value)
    assert message in said


@pytest.mark.parametrize(
    "gate",
    [
        LOOKS,
        {"metric": "forget.probability", "at_most": 0.5, "relative_to": "before"},
        {"metric": "forget.probability", "at_most": 1.5, "relative_to": "holdout"},
        {"metric": "forget.truth_ratio", "at_least": 0.5},
        {"metric": "forget.exact_memorization", "at_most": 0.5},
        {"metric": "forget.extraction_strength", "at_most": 0.2},
        {"metric": "membership.min_k_20.auc", "at_least": 0.4, "at_most": 0.6},
    ],
)
def test_a_gate_that_can_be_looked_at_is_enough_to_stop_for(gate: dict[str, Any]) -> None:
    data = GOOD["data"] | {"holdout": {"source": "jsonl", "path": "holdout.jsonl"}}
    request = GOOD | {"data": data, "gates": [gate], "training": {"stop_when": "gates"}}
    assert parse(request) == parse(request | {"training": {"stop_when": {}}})


@pytest.mark.parametrize("profile", ["erasure", "copyright", "harm"])
def test_every_profile_is_enough_to_stop_for(profile: str) -> None:
    data = {"forget": FORGET, "retain": GOOD["data"]["retain"]}
    request = GOOD | {"data": data, "profile": profile, "training": {"stop_when": "gates"}}
    request["gates"] = []
    assert parse(request).training.stop_when == StopWhen()
