import copy
import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import SpecError
from core.spec.job import JobSpec, digest_of, parse
from core.spec.methods import ALIASES, FORGET_TERMS
from core.spec.wording import WANTED

FORGET, RETAIN = {"source": "jsonl", "path": "forget.jsonl"}, {"source": "jsonl", "path": "retain.jsonl"}
GOOD: dict[str, Any] = {
    "model": {"path": "models/small"},
    "data": {"forget": FORGET, "retain": RETAIN},
    "method": {"name": "npo", "retain": {"name": "nll"}},
    "optimizer": {"name": "sophia_g"},
    "gates": [{"metric": "forget.rouge_l", "at_most": 0.3}],
}
TERMS = f"Allowed: {', '.join(sorted([*FORGET_TERMS, *ALIASES]))}."
FIELDS = (
    "Allowed: batch, data, evaluation, gates, method, model, optimizer, preset, priority, profile, reason, "
    "received_at, reference, seed, threads, training."
)


def problems(spec: Any) -> list[tuple[str, Any, str]]:
    with pytest.raises(SpecError) as caught:
        parse(spec)
    assert caught.value.param == caught.value.problems[0].param
    return [(problem.param, problem.value, problem.message) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("change", "param", "value", "message"),
    [
        ({"modle": 1}, "modle", 1, f"Unknown field 'modle'. Did you mean 'model'? {FIELDS}"),
        ({"Seed": 1}, "Seed", 1, f"Unknown field 'Seed'. Did you mean 'seed'? {FIELDS}"),
        ({"\ud800" * 99: 1}, r"\ud800" * 77 + "...", 1, FIELDS),
        ({"model": 5}, "model", 5, "JSON object (got 5)"),
        ({"model": {}}, "model.path", None, "required"),
        ({"model": "mdl_x"}, "model.id", "mdl_x", "id of a registered model: mdl_"),
        ({"model": {"id": "mdl_0123456789", "path": "x"}}, "model.path", "x", "Unknown field 'path'. Allowed: id."),
        ({"model": {"path": "a\0b"}}, "model.path", "a\0b", "a path without a zero character (got "),
        ({"data": {}}, "data.forget", None, "required"),
        ({"data": {"forget": "x"}}, "data.forget", "x", 'JSON object (got "x")'),
        (
            {"data": {"forget": {}}},
            "data.forget.source",
            None,
            "required. Allowed: copyright, jsonl, muse, pku_saferlhf, text, tofu, toxic_prompts, upload, wmdp.",
        ),
        (
            {"data": {"forget": {"source": "hub"}}},
            "data.forget.source",
            "hub",
            '"hub". Allowed: copyright, jsonl, muse, pku_saferlhf, text, tofu, toxic_prompts, upload, wmdp.',
        ),
        (
            {"data": {"forget": {"source": "tofu", "path": "p", "split": "../x"}, "retain": RETAIN}},
            "data.forget.split",
            "../x",
            "name of a split, such as forget01",
        ),
        ({"data": {"forget": FORGET, "retain": RETAIN, "prompt": "xml"}}, "data.prompt", "xml", "'llama2' or 'chat'"),
        ({"method": None}, "method", None, "JSON object (got null)"),
        ({"method": {}}, "method.name", None, f"Field 'name' is required. {TERMS}"),
        ({"method": "npx"}, "method.name", "npx", f"Unknown name \"npx\". Did you mean 'npo'? {TERMS}"),
        ({"method": {"name": ["npo"]}}, "method.name", ["npo"], TERMS),
        (
            {"method": {"name": "npo", "bta": 1}},
            "method.bta",
            1,
            "Unknown field 'bta'. Did you mean 'beta'? Allowed: beta, name, normalise, retain, weight.",
        ),
        ({"method": {"name": "npo", "beta": 0}}, "method.beta", 0, "greater than 0 (got 0)"),
        ({"method": {"name": "npo", "weight": 1e9}}, "method.weight", 1e9, "less than or equal to 1000000"),
        (
            {"method": {"name": "npo", "retain": "kll"}},
            "method.retain.name",
            "kll",
            "'kl'? Allowed: ce_ref, hidden, kl, nll, none.",
        ),
        (
            {"method": {"name": "npo", "retain": {"name": "none", "weight": 1}}},
            "method.retain.weight",
            1,
            "less than or equal to 0 (got 1)",
        ),
        ({"method": {"name": "refusal", "refusals": []}}, "method.refusals", [], "at least 1 item"),
        ({"method": {"name": "refusal", "refusals": [""]}}, "method.refusals.0", "", "at least 1 character"),
        (
            {"optimizer": "adam"},
            "optimizer.name",
            "adam",
            "Did you mean 'adamw'? Allowed: adamw, adamw_8bit, muon, sgd, sophia_g, sophia_h, soul.",
        ),
        ({"optimizer": {"name": "adamw", "betas": [0.9]}}, "optimizer.betas.1", None, "required"),
        ({"optimizer": {"name": "adamw", "betas": [0.9, 1]}}, "optimizer.betas.1", 1, "less than 1 (got 1)"),
        ({"optimizer": {"name": "adamw", "lr": "fast"}}, "optimizer.lr", "fast", "valid number, unable to parse"),
        ({"optimizer": {"name": "adamw", "lr": math.nan}}, "optimizer.lr", "NaN", "finite number (got NaN)"),
        ({"optimizer": {"name": "soul", "rho": math.inf}}, "optimizer.rho", "Infinity", "finite number"),
        ({"training": {"epochs": 0}}, "training.epochs", 0, "greater than 0"),
        ({"training": {"steps": 1.5}}, "training.steps", 1.5, "integer"),
        ({"training": {"warmup": 1}}, "training.warmup", 1, "less than 1"),
        ({"training": {"schedule": "cosine"}}, "training.schedule", "cosine", "'linear' or 'constant'"),
        ({"training": {"epochs": 1, "steps": 2}}, "training.steps", 2, "not both"),
        ({"gates": {}}, "gates", {}, "list"),
        ({"gates": [7]}, "gates.0", 7, "JSON object"),
        ({"gates": GOOD["gates"] * 101}, "gates", GOOD["gates"] * 101, "at most 100 items"),
        (
            {"gates": [{"metric": "forget.rouge_l"}]},
            "gates.0",
            {"metric": "forget.rouge_l"},
            "at_most, at_least or both",
        ),
        (
            {"gates": [*GOOD["gates"], {"metric": "forget.rogue_l", "at_most": 1}]},
            "gates.1.metric",
            "forget.rogue_l",
            "Did you mean 'forget.rouge_l'? Allowed: few_shot.exact_memorization,",
        ),
        (
            {"gates": [{"metric": "forget.rouge_l", "at_most": 1, "relative_to": "after"}]},
            "gates.0.relative_to",
            "after",
            "'before' or 'holdout'",
        ),
        ({"seed": -1}, "seed", -1, "greater than or equal to 0"),
        ({"seed": 2**31}, "seed", 2**31, "less than 2147483648"),
        ({"threads": 0}, "threads", 0, "greater than or equal to 1"),
        ({"reason": "spite"}, "reason", "spite", "'gdpr_art_17', 'copyright', 'harm', 'contract' or 'other'"),
        ({"reference": "x" * 201}, "reference", "x" * 201, "at most 200 characters"),
        ({"reference": "\ud800"}, "reference", r'"\ud800"', r'(got "\ud800")'),
        ({"data": {"forget": FORGET}}, "data.retain", None, "This field is required by the retain term 'nll'"),
        ({"method": {"name": "npo", "nll": 1}}, "method.nll", 1, "Unknown field 'nll'."),
        ({"data": {"forget": FORGET | {"text": 1}}}, "data.forget.text", 1, "Unknown field 'text'."),
        ({"optimizer": {"name": "sgd", "nesterov": True}}, "optimizer.nesterov", True, "above 0 (got 0)."),
        (
            {"data": {"forget": FORGET, "retain": RETAIN, "forget_ratio": 0.5, "self_retain": True}},
            "data.self_retain",
            True,
            "Give either it or retain.",
        ),
        ({"data": {"forget": FORGET, "retain": FORGET | {"rows": 1}}}, "data.retain", FORGET | {"rows": 1}, "very set"),
        (
            {"data": {"forget": FORGET, "retain": RETAIN, "holdout": FORGET}},
            "data.holdout",
            FORGET,
            "holdout is the very set to forget. Give another one, or none.",
        ),
        # A set and a source may have one name.
        (
            {"data": {"forget": FORGET, "retain": RETAIN, "text": {"source": "text", "path": "p", "split": "/"}}},
            "data.text.split",
            "/",
            "a name such as wikitext-2-raw-v1",
        ),
        (
            {"data": {"forget": FORGET, "retain": RETAIN, "toxic_prompts": {"source": "toxic_prompts"}}},
            "data.toxic_prompts.path",
            None,
            "Give exactly one of path",
        ),
        (
            {"data": {"forget": FORGET, "retain": RETAIN, "text": {"source": "x"}}},
            "data.text.source",
            "x",
            "Unknown so",
        ),
        (
            {"data": {"forget": {"source": "tofu", "split": "x", "hub": "a/b"}, "retain": RETAIN}},
            "data.forget.revision",
            None,
            "hub needs a revision: a full commit hash.",
        ),
        (
            {"data": {"forget": {"source": "tofu", "split": "x", "hub": "a/b/c"}, "retain": RETAIN}},
            "data.forget.hub",
            "a/b/c",
            'Input should be an id such as locuslab/TOFU (got "a/b/c").',
        ),
        ({"training": {"sharding": "fsdp"}, "optimizer": "sophia_h"}, "optimizer.name", "sophia_h", "muon, sgd, soph"),
        (
            {"training": {"sharding": "fsdp"}, "optimizer": "adamw_8bit"},
            "optimizer.name",
            "adamw_8bit",
            "whole tensors. Allowed: ",
        ),
        ({"training": {"sharding": "fsdp"}, "method": "task_vector"}, "method.name", "task_vector", "sharding 'ddp'."),
        ({"training": {"sharding": "fsdp"}, "method": "influence"}, "method.name", "influence", "sharding 'ddp'."),
        (
            {"training": {"sharding": "fsdp"}, "method": {"name": "retrain", "base": "b"}},
            "method.name",
            "retrain",
            "'retrain' cannot be used with training.sharding 'fsdp'",
        ),
        ({"training": {"processes": 2}, "method": "influence"}, "method.name", "influence", "training.processes to 1"),
        ({"training": {"precision": "bf16"}, "method": "influence"}, "training.precision", "bf16", "Allowed: 'fp32'."),
        ({"training": {"layers": [0]}, "method": "guard"}, "training.layers", [0], "trains no weight. Allowed: null."),
        (
            {"data": {"forget": FORGET}, "method": "npo"},
            "optimizer.curvature_on",
            "retain",
            "'retain'. Allowed without it: forget.",
        ),
        (
            {
                "data": {"forget": FORGET},
                "method": "npo",
                "optimizer": "adamw",
                "gates": [*GOOD["gates"], {"metric": "retain.rouge_l", "at_least": 0.5}],
            },
            "gates.1.metric",
            "retain.rouge_l",
            "required by the gate on 'retain.rouge_l'",
        ),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_is_allowed(
    change: dict[str, Any], param: str, value: Any, message: str
) -> None:
    (found,) = problems(GOOD | change)
    assert found[:2] == (param, value)
    assert message in found[2]


@pytest.mark.parametrize("spec", [None, [], "npo", 5, True, math.nan])
def test_what_is_no_object_is_refused(spec: Any) -> None:
    ((param, _, message),) = problems(spec)
    assert param == ""
    assert message.startswith("Input should be a JSON object (got ")


def test_every_fault_is_found_at_once() -> None:
    spec = GOOD | {
        "modle": 1,
        "sede": 2,
        "seed": -1,
        "training": {"epohcs": 1, "warmup": 2},
        "gates": [{"metric": "x", "at_most": 1}, {"metrik": "forget.rouge_l", "at_most": 1}],
    }
    found = [param for param, _, _ in problems(spec)]
    assert sorted(found) == sorted(
        [
            "modle",
            "sede",
            "seed",
            "training.epohcs",
            "training.warmup",
            "gates.0.metric",
            "gates.1.metric",
            "gates.1.metrik",
        ]
    )


def test_a_thousand_unknown_fields_are_not_a_thousand_searches() -> None:
    assert len(problems(GOOD | {f"field{i}": i for i in range(1000)})) == 10


@pytest.mark.parametrize(
    ("method", "means"),
    [
        ("GA", {"name": "ascent"}),
        ("GradDiff", {"name": "ascent", "retain": {"name": "nll"}}),
        ("PO", {"name": "refusal", "retain": {"name": "nll"}}),
        ("NPO", {"name": "npo", "retain": "nll"}),
        ("npo", {"name": "npo", "retain": "none"}),
        ({"name": "GradDiff", "weight": 2}, {"name": "ascent", "weight": 2, "retain": "nll"}),
        ({"name": "GradDiff", "retain": {"weight": 3}}, {"name": "ascent", "retain": {"name": "nll", "weight": 3}}),
        ({"name": "GradDiff", "retain": "kl"}, {"name": "ascent", "retain": {"name": "kl"}}),
        ({"name": "NPO", "beta": 0.5}, {"name": "npo", "beta": 0.5, "retain": "nll"}),
    ],
)
def test_an_alias_is_the_method_it_stands_for(method: Any, means: Any) -> None:
    assert parse(GOOD | {"method": method}) == parse(GOOD | {"method": means})


def test_short_forms_are_the_long_ones() -> None:
    assert parse(GOOD | {"model": "models/small", "optimizer": "sophia_g"}) == parse(GOOD)
    assert parse(GOOD | {"model": "mdl_0123456789"}) == parse(GOOD | {"model": {"id": "mdl_0123456789"}})


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shuffled(inner) for key, inner in reversed(value.items())}
    return [shuffled(inner) for inner in value] if isinstance(value, list) else value


def test_digest_is_of_the_meaning_not_of_the_writing() -> None:
    digest = parse(GOOD).digest()
    assert parse(shuffled(GOOD)).digest() == digest
    resolved = json.loads(json.dumps(parse(GOOD).model_dump(mode="json")))
    assert parse(resolved).digest() == digest
    assert digest_of(shuffled(resolved)) == digest
    assert parse(GOOD | {"seed": 0, "optimizer": "sophia_g", "training": {}}).digest() == digest


def test_digest_is_the_same_in_another_process() -> None:
    program = "import json, sys; from core.spec.job import parse; print(parse(json.load(sys.stdin)).digest())"
    run = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(GOOD), capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == parse(GOOD).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"model": "models/other"},
        {"model": "mdl_0123456789"},
        {"data": {"forget": RETAIN, "retain": FORGET}},
        {"data": {"forget": FORGET | {"rows": 5}, "retain": RETAIN}},
        {"data": {"forget": FORGET, "retain": RETAIN, "prompt": "chat"}},
        {"data": {"forget": FORGET, "retain": RETAIN, "max_length": 513}},
        {"method": "npo"},
        {"method": {"name": "npo", "retain": "kl"}},
        {"method": {"name": "npo", "retain": "nll", "beta": 0.1000001}},
        {"method": {"name": "npo", "retain": {"name": "nll", "weight": 1.5}}},
        {"optimizer": "adamw"},
        {"optimizer": {"name": "sophia_g", "every": 11}},
        {"training": {"batch_size": 5}},
        {"training": {"max_grad_norm": None}},
        {"data": {"forget": FORGET, "retain": RETAIN, "holdout": {"source": "jsonl", "path": "holdout.jsonl"}}},
        {"evaluation": {"attacks": ["relearn"]}},
        {"evaluation": {"membership": []}},
        {"profile": "copyright"},
        {"gates": [{"metric": "forget.rouge_l", "at_most": 0.3, "at_least": 0}]},
        {"evaluation": {"bootstrap": 999}},
        {"gates": []},
        {"gates": [{"metric": "forget.rouge_l", "at_most": 0.31}]},
        {"gates": [{"metric": "forget.rouge_l", "at_least": 0.3}]},
        {"gates": [{"metric": "forget.rouge_l", "at_most": 0.3, "interval": True}]},
        {"gates": [{"metric": "forget.rouge_l", "at_most": 0.3, "relative_to": "before"}]},
        {"gates": GOOD["gates"] * 2},
        {"seed": 1},
        {"threads": 1},
        {"reason": "harm"},
        {"reference": "CASE-7"},
    ],
)
def test_digest_changes_with_every_field(change: dict[str, Any]) -> None:
    assert parse(GOOD | change).digest() != parse(GOOD).digest()


def test_no_field_of_the_spec_is_outside_its_digest() -> None:
    assert set(parse(GOOD).model_dump(mode="json")) == set(JobSpec.model_fields)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
PATHS = [
    (),
    ("model",),
    ("model", "path"),
    ("data",),
    ("data", "forget"),
    ("data", "forget", "source"),
    ("data", "forget", "rows"),
    ("data", "retain"),
    ("data", "text"),
    ("data", "toxic_prompts"),
    ("method",),
    ("method", "name"),
    ("method", "retain"),
    ("method", "retain", "name"),
    ("optimizer",),
    ("optimizer", "betas"),
    ("training",),
    ("training", "steps"),
    ("training", "stop_when"),
    ("evaluation",),
    ("evaluation", "attacks"),
    ("evaluation", "classifier"),
    ("evaluation", "lm_eval"),
    ("evaluation", "membership"),
    ("evaluation", "retrained"),
    ("profile",),
    ("gates",),
    ("gates", 0),
    ("gates", 0, "metric"),
    ("gates", 0, "at_most"),
    ("seed",),
    ("reference",),
    ("\ud800",),
]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(PATHS), json_values)
def test_any_json_is_a_spec_or_a_spec_error_that_can_be_sent(path: tuple[str | int, ...], value: Any) -> None:
    spec: Any = copy.deepcopy(GOOD | {"training": {}, "evaluation": {}})
    if path:
        place = spec
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
    else:
        spec = value
    try:
        parse(spec).digest()
    except SpecError as error:
        told = [error.as_dict(), *([p.param, p.value, p.message] for p in error.problems)]
        json.dumps(told, allow_nan=False, ensure_ascii=False).encode()


def test_a_value_nested_too_deeply_to_show_is_still_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    ((param, value, _),) = problems(GOOD | {"reference": deep})
    assert (param, value) == ("reference", "a list that cannot be shown")


def test_a_set_cannot_be_forgotten_and_kept() -> None:
    upload = {"source": "upload", "dataset": "ds_0123456789"}
    with pytest.raises(SpecError, match="the very set to forget"):
        parse({"model": "mdl_0123456789", "data": {"forget": upload, "retain": upload}, "method": "GradDiff"})


def test_the_rest_of_the_forget_set_is_a_retain_set() -> None:
    rest = {"forget": FORGET, "forget_ratio": 0.5, "self_retain": True}
    assert parse(GOOD | {"data": rest, "method": "GradDiff"}).data.has_retain
    assert problems(GOOD | {"data": {"forget": FORGET, "forget_ratio": 0.5}, "method": "GradDiff"})


@pytest.mark.parametrize("method", ["guard", "origin"])
def test_what_trains_nothing_asks_nothing_of_an_optimizer(method: str) -> None:
    parse(GOOD | {"data": {"forget": FORGET}, "method": method})
    parse(GOOD | {"method": method, "optimizer": "sophia_h", "training": {"sharding": "fsdp"}})


def test_every_pattern_has_words() -> None:
    def patterns(schema: Any) -> set[str]:
        inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
        own = {schema["pattern"]} if isinstance(schema, dict) and isinstance(schema.get("pattern"), str) else set()
        return own.union(*map(patterns, inner))

    # A commit's hash and an adapter's targets are refused in words of their own.
    said_elsewhere = {"^[0-9a-f]{40}$", "^[A-Za-z0-9_.]{1,200}$"}
    assert patterns(JobSpec.model_json_schema()) - said_elsewhere == set(WANTED)
