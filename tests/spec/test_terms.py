"""Methods and retain terms of a request: what each refuses, which go together, what the published names mean."""

import json
from typing import Any, get_args

import pytest

from core.errors import SpecError
from core.spec.base import Spec
from core.spec.job import _TAGS, JobSpec, parse
from core.spec.layers import resolved_layer, steering_layers
from core.spec.methods import ALIASES, FORGET_TERMS, Method
from core.spec.retain import RETAIN_TERMS, SCHEDULES
from core.spec.table import methods_table, methods_text

NEEDED: dict[str, Any] = {"retrain": {"base": "models/base"}}
EDITS = ("task_vector", "influence", "retrain", "guard", "origin")
SOUL = [
    "FT",
    "l1_sparse",
    "l1sparse",
    "GA",
    "GA+FT",
    "GA+KL",
    "CL",
    "CL+FT",
    "CL+KL",
    "RL",
    "KL",
    "NPO",
    "GA_FT_epoch",
    "GA_KL_epoch",
    "CL_FT_epoch",
    "origin",
    "sys",
    "PO",
    "GradDiff",
]
OPEN_UNLEARNING = ["GradAscent", "GradDiff", "NPO", "SimNPO", "DPO", "RMU", "UNDIAL", "CE-U", "WGA", "SatImp", "PDU"]


def request(method: Any, retain_set: bool = True) -> dict[str, Any]:
    names = ("forget", "retain") if retain_set else ("forget",)
    data = {name: {"source": "jsonl", "path": name} for name in names}
    return {"model": "models/small", "data": data, "method": method}


def resolved(method: Any) -> Any:
    return parse(request(method)).method


def refused(method: Any, retain_set: bool = True) -> tuple[str, Any, str]:
    with pytest.raises(SpecError) as caught:
        parse(request(method, retain_set))
    (problem,) = caught.value.problems
    return problem.param, problem.value, problem.message


BOUNDS = [
    ("wga", "beta", -1, "greater than or equal to 0"),
    ("wga", "beta", 101, "less than or equal to 100"),
    ("satimp", "beta1", -0.1, "greater than or equal to 0"),
    ("satimp", "beta2", 1e9, "less than or equal to 100"),
    ("npo", "beta", 0, "greater than 0"),
    ("npo", "normalise", "words", "'sequence' or 'tokens'"),
    ("simnpo", "delta", 101, "less than or equal to 100"),
    ("dpo", "beta", 0, "greater than 0"),
    ("dpo", "alternative", "silence", "'refusal' or 'alternative_answer'"),
    ("dpo", "refusals", [], "at least 1 item"),
    ("refusal", "refusals", [], "at least 1 item"),
    ("refusal", "refusals_file", "", "at least 1 character"),
    ("random_label", "weight", -1, "greater than or equal to 0"),
    ("ascent", "weight", 1e7, "less than or equal to 1000000"),
    ("ce_ref_forget", "weight", "much", "valid number"),
    ("undial", "beta", -1, "greater than or equal to 0"),
    ("ce_u", "skip", -1, "greater than or equal to 0"),
    ("ce_u", "skip", 1.5, "integer"),
    ("max_entropy", "weight", None, "valid number"),
    ("ihl", "weight", -1, "greater than or equal to 0"),
    ("logit_flat", "weight", -1, "greater than or equal to 0"),
    ("rmu", "c", 0, "greater than 0"),
    ("rmu", "layer", -1, "greater than or equal to 0"),
    ("rmu", "direction", -1, "greater than or equal to 0"),
    ("zero", "l1", -1e-9, "greater than or equal to 0"),
    ("task_vector", "alpha", -1, "greater than or equal to 0"),
    ("influence", "damping", 0, "greater than 0"),
    ("influence", "solver", "exact", "'diagonal' or 'conjugate_gradient'"),
    ("influence", "iterations", 0, "greater than or equal to 1"),
    ("retrain", "base", 7, "JSON object"),
    ("guard", "system_prompt", "", "at least 1 character"),
    ("origin", "retain", "kl", "'none'"),
]


def test_every_method_is_in_the_table_of_bounds() -> None:
    assert {name for name, *_ in BOUNDS} == set(FORGET_TERMS)


@pytest.mark.parametrize(("name", "field", "value", "allowed"), BOUNDS)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(name: str, field: str, value: Any, allowed: str) -> None:
    param, told, message = refused({"name": name, **NEEDED.get(name, {}), field: value})
    inner = ".name" if field == "retain" else ""
    assert (param, told) == (f"method.{field}{inner}", value)
    assert allowed in message
    assert f"(got {json.dumps(value)})" in message


@pytest.mark.parametrize("name", FORGET_TERMS)
def test_an_unknown_field_is_refused_with_those_that_there_are(name: str) -> None:
    param, told, message = refused({"name": name, **NEEDED.get(name, {}), "gama": 3})
    assert (param, told) == ("method.gama", 3)
    assert message.endswith(f"Allowed: {', '.join(sorted(FORGET_TERMS[name].model_fields))}.")


@pytest.mark.parametrize("name", ["dpo", "refusal"])
def test_refusals_are_given_once(name: str) -> None:
    param, _, message = refused({"name": name, "refusals": ["No."], "refusals_file": "no.txt"})
    assert (param, message) == ("method.refusals_file", "Give refusals or refusals_file, not both.")
    for own in ({"refusals": ["No."]}, {"refusals_file": "no.txt"}, {}):
        assert resolved({"name": name, **own}).model_dump(include=set(own)) == own


def test_refusals_that_nothing_would_use_are_refused() -> None:
    param, _, message = refused({"name": "dpo", "alternative": "alternative_answer", "refusals": ["No."]})
    assert param == "method.alternative"
    assert "'refusal'" in message


def test_a_method_needs_its_base_model() -> None:
    assert refused("retrain") == ("method.base", None, "This field is required.")
    assert resolved({"name": "retrain", "base": "mdl_0123456789"}).base.id == "mdl_0123456789"


@pytest.mark.parametrize("name", [n for n in FORGET_TERMS if FORGET_TERMS[n].needs_retain])
def test_a_method_that_uses_the_retain_set_needs_one(name: str) -> None:
    param, _, message = refused({"name": name, **NEEDED.get(name, {})}, retain_set=False)
    assert (param, message) == ("data.retain", f"This field is required by the method '{name}'.")


@pytest.mark.parametrize("retain", RETAIN_TERMS)
@pytest.mark.parametrize("name", FORGET_TERMS)
def test_every_forget_term_goes_with_every_retain_term(name: str, retain: str) -> None:
    method = {"name": name, "retain": retain, **NEEDED.get(name, {})}
    takes = {"retrain": retain == "nll", "zero": retain != "none"}.get(name, name not in EDITS or retain == "none")
    if takes:
        assert resolved(method).retain.name == retain
        return
    param, told, message = refused(method)
    assert (param, told) == ("method.retain.name", retain)
    allowed = {"retrain": "'nll'", "zero": "Allowed: ce_ref, hidden, kl, nll."}.get(name, "'none'")
    assert allowed in message


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("retain", [name for name in RETAIN_TERMS if name != "none"])
def test_every_retain_term_goes_with_every_schedule(retain: str, schedule: str) -> None:
    assert resolved({"name": "npo", "retain": {"name": retain, "schedule": schedule}}).retain.schedule.name == schedule


def test_a_schedule_is_refused_by_name_and_by_field() -> None:
    param, told, message = refused({"name": "npo", "retain": {"name": "kl", "schedule": "cosine"}})
    assert (param, told) == ("method.retain.schedule.name", "cosine")
    assert message.endswith("Allowed: constant, linear, primal_dual.")
    dual = {"name": "primal_dual", "eta": 0}
    param, told, _ = refused({"name": "npo", "retain": {"name": "kl", "schedule": dual}})
    assert (param, told) == ("method.retain.schedule.eta", 0)


def test_rmu_looks_at_one_layer() -> None:
    hidden = {"name": "hidden", "layer": 5}
    assert resolved({"name": "rmu", "layer": 5, "retain": hidden}).layer == 5
    param, _, message = refused({"name": "rmu", "layer": 4, "retain": hidden})
    assert (param, message) == ("method.retain.layer", "'rmu' looks at one layer: leave retain.layer out.")


@pytest.mark.parametrize(
    ("method", "depth", "layer"),
    [
        ("npo", 32, None),
        ("origin", 32, None),
        ("RMU", 32, 7),
        ("rmu", 12, 2),
        ("rmu", 8, 2),
        ("rmu", 2, 1),
        ({"name": "rmu", "layer": 11, "retain": "hidden"}, 32, 11),
        ({"name": "npo", "retain": "hidden"}, 80, 19),
        ({"name": "npo", "retain": {"name": "hidden", "layer": 0}}, 32, 0),
    ],
)
def test_the_layer_is_at_a_quarter_of_the_depth_unless_given(method: Any, depth: int, layer: int | None) -> None:
    assert resolved_layer(resolved(method), depth) == layer


def test_rmu_trains_its_layer_and_the_two_below() -> None:
    assert list(steering_layers(7)) == [5, 6, 7]
    assert list(steering_layers(1)) == [0, 1]


def test_no_published_name_is_missing() -> None:
    known = {*FORGET_TERMS, *ALIASES}
    assert set(SOUL) <= known
    assert set(OPEN_UNLEARNING) <= known
    assert set(ALIASES) <= {*SOUL, *OPEN_UNLEARNING}
    assert not set(ALIASES) & set(FORGET_TERMS)


@pytest.mark.parametrize(
    ("alias", "forget", "retain", "schedule"),
    [
        ("FT", "zero", "nll", "constant"),
        ("l1_sparse", "zero", "nll", "constant"),
        ("l1sparse", "zero", "nll", "constant"),
        ("GA", "ascent", "none", "constant"),
        ("GA+FT", "ascent", "nll", "constant"),
        ("GA+KL", "ascent", "ce_ref", "constant"),
        ("CL", "refusal", "none", "constant"),
        ("CL+FT", "refusal", "nll", "constant"),
        ("CL+KL", "refusal", "ce_ref", "constant"),
        ("RL", "random_label", "none", "constant"),
        ("KL", "ce_ref_forget", "ce_ref", "constant"),
        ("NPO", "npo", "nll", "constant"),
        ("GA_FT_epoch", "ascent", "nll", "linear"),
        ("GA_KL_epoch", "ascent", "ce_ref", "linear"),
        ("CL_FT_epoch", "refusal", "nll", "linear"),
        ("origin", "origin", "none", "constant"),
        ("sys", "guard", "none", "constant"),
        ("PO", "refusal", "nll", "constant"),
        ("GradDiff", "ascent", "nll", "constant"),
        ("GradAscent", "ascent", "none", "constant"),
        ("SimNPO", "simnpo", "nll", "constant"),
        ("DPO", "dpo", "nll", "constant"),
        ("RMU", "rmu", "hidden", "constant"),
        ("UNDIAL", "undial", "none", "constant"),
        ("CE-U", "ce_u", "none", "constant"),
        ("WGA", "wga", "nll", "constant"),
        ("SatImp", "satimp", "nll", "constant"),
        ("PDU", "logit_flat", "nll", "primal_dual"),
    ],
)
def test_a_published_name_is_its_two_terms(alias: str, forget: str, retain: str, schedule: str) -> None:
    method = resolved(alias)
    assert (method.name, method.retain.name, method.retain.schedule.name) == (forget, retain, schedule)


def test_what_published_names_fix_beside_their_terms() -> None:
    assert (resolved("l1_sparse").l1 > 0, resolved("FT").l1) == (True, 0)
    assert (resolved("SatImp").weight, resolved("SimNPO").weight) == (0.1, 0.125)
    assert resolved("RMU").retain.weight >= 100


def test_what_may_be_asked_is_what_the_table_holds() -> None:
    union = get_args(get_args(Method)[0])
    assert list(union) == list(FORGET_TERMS.values())
    for name, spec in FORGET_TERMS.items():
        assert spec.model_fields["name"].default == name


def test_no_field_has_the_name_of_a_choice() -> None:
    """A choice's name is taken out of the path to a problem, so a field of that name would be too."""

    def fields(spec: type[Spec]) -> set[str]:
        return set(spec.model_fields)

    specs: list[type[Spec]] = [JobSpec, *FORGET_TERMS.values(), *RETAIN_TERMS.values(), *SCHEDULES.values()]
    assert not set().union(*map(fields, specs)) & _TAGS


def test_the_table_tells_every_field_and_name() -> None:
    text = methods_text(90)
    assert max(map(len, text.splitlines())) <= 90
    for row in methods_table():
        spec: type[Spec] = (FORGET_TERMS if row["kind"] == "method" else RETAIN_TERMS)[row["name"]]
        assert set(row["required"]) | set(row["defaults"]) | {"name"} == set(spec.model_fields)
        for word in (row["name"], *row["defaults"], *row["aliases"]):
            assert word in text
    assert {alias for row in methods_table() for alias in row["aliases"]} == set(ALIASES)
    json.dumps(methods_table(), allow_nan=False)
