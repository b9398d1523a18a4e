import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from core.spec.attacks import ATTACKS
from core.spec.base import Spec
from core.spec.catalogue import catalogue
from core.spec.evaluation import Evaluation
from core.spec.gates import Gate
from core.spec.job import parse
from core.spec.methods import ALIASES, FORGET_TERMS
from core.spec.metrics import LM_EVAL_NAME, METRICS, SETS
from core.spec.optimizers import OPTIMIZERS
from core.spec.presets import PRESETS
from core.spec.profiles import PROFILES
from core.spec.retain import RETAIN_TERMS
from core.spec.sources import SOURCES, Data

CATALOGUE = catalogue()
SPECS: dict[str, dict[str, type[Spec]]] = {
    "forget": dict(FORGET_TERMS),
    "retain": dict(RETAIN_TERMS),
    "optimizers": dict(OPTIMIZERS),
    "sources": dict(SOURCES),
    "gates": {"gate": Gate},
    "attacks": dict(ATTACKS),
}
ENTRIES = [
    (table, entry)
    for table, entries in {**CATALOGUE["methods"], **CATALOGUE}.items()
    if table in SPECS
    for entry in entries
]
# A gate needs one of its two bounds, and the two places of a set exclude each other: none of them can be tried alone.
FIELDS = [
    (table, entry["name"], name, field)
    for table, entry in ENTRIES
    for name, field in entry["fields"].items()
    if name not in ("at_most", "at_least", "hub", "revision") and not (name == "path" and field.get("nullable"))
]
NEEDED = {"path": "folder", "split": "forget01", "dataset": "ds_0123456789", "metric": "forget.rouge_l", "at_most": 0.3}
NEEDED_BY: dict[str, dict[str, Any]] = {
    "wmdp": {"config": "wmdp-bio"},
    **{name: {"split": "train"} for name in ("pku_saferlhf", "text", "copyright")},
    "toxic_prompts": {"split": "prompts"},
    "retrain": {"base": "folder"},
}


def make(table: str, name: str, without: str = "", **fields: Any) -> Spec:
    """The spec with what it needs, save `without`, and `fields`."""
    cls = SPECS[table][name]
    needs = NEEDED | NEEDED_BY.get(name, {})
    needed = {key: value for key, value in needs.items() if key in cls.model_fields and key != without}
    return cls.model_validate(needed | fields)


def test_nothing_is_left_out() -> None:
    for table, specs in SPECS.items():
        assert [entry["name"] for named, entry in ENTRIES if named == table] == list(specs)
    for table, entry in ENTRIES:
        tag = {"name", "source"} if table != "gates" else set()
        assert set(entry["fields"]) == set(SPECS[table][entry["name"]].model_fields) - tag
        assert entry["summary"].endswith(".")
    assert [metric["name"] for metric in CATALOGUE["metrics"]] == list(METRICS)
    assert [profile["name"] for profile in CATALOGUE["profiles"]] == list(PROFILES)
    assert CATALOGUE["methods"]["aliases"] == ALIASES
    assert {preset["name"]: preset["fields"] for preset in CATALOGUE["presets"]} == {
        name: preset.fields for name, preset in PRESETS.items()
    }


@pytest.mark.parametrize(("table", "name", "field", "told"), FIELDS, ids=[".".join(f[:3]) for f in FIELDS])
def test_defaults_and_limits_are_those_that_hold(table: str, name: str, field: str, told: dict[str, Any]) -> None:
    if told.get("required"):
        with pytest.raises(ValidationError):
            make(table, name, without=field)
    else:
        assert make(table, name).model_dump(mode="json")[field] == told["default"]
    for value, allowed in tries(told):
        if allowed:
            make(table, name, **{field: value})
        else:
            with pytest.raises(ValidationError):
                make(table, name, **{field: value})


def tries(told: dict[str, Any]) -> list[tuple[Any, bool]]:
    """Values at the edge of what the catalogue tells, and just beyond it."""
    limits, step = told["limits"], 1 if told["type"] == "integer" else 1e-9
    found: list[tuple[Any, bool]] = [("no such thing", False)] if told.get("allowed") else []
    # Of a task's own metrics there is no list, only how their names look.
    found += [("lm_eval.arc_easy.acc" if value == LM_EVAL_NAME else value, True) for value in told.get("allowed", [])]
    if "minimum" in limits:
        found += [(limits["minimum"], True), (limits["minimum"] - step, False)]
    if "maximum" in limits:
        found += [(limits["maximum"], True), (limits["maximum"] + max(step, limits["maximum"] * 1e-9), False)]
    if "exclusiveMinimum" in limits:
        found += [(limits["exclusiveMinimum"], False), (limits["exclusiveMinimum"] + 1e-9, True)]
    if "maxLength" in limits:
        found += [("x" * limits["maxLength"], True), ("x" * (limits["maxLength"] + 1), False)]
    if "minItems" in limits and isinstance(told["items"], dict):
        found += [([], False), (["x"] * limits["maxItems"], True), (["x"] * (limits["maxItems"] + 1), False)]
    if isinstance(told.get("items"), list):
        found += [([0.5] * n, n == len(told["items"])) for n in (1, 2, 3)]
        found += [([item["limits"]["exclusiveMaximum"]] * 2, False) for item in told["items"]]
    if told.get("nullable"):
        found.append((None, True))
    return found


def test_it_tells_enough() -> None:
    """The table of edges above is not empty by accident."""
    assert sum(len(tries(told)) for _, _, _, told in FIELDS) > 100


def test_known_entries() -> None:
    (npo,) = (entry for entry in CATALOGUE["methods"]["forget"] if entry["name"] == "npo")
    assert npo["citation"] == "arXiv:2404.05868"
    assert npo["fields"]["beta"] == {
        "type": "number",
        "limits": {"exclusiveMinimum": 0, "maximum": 100},
        "default": 0.1,
        "description": "inverse temperature of the preference",
    }
    assert npo["fields"]["retain"]["allowed"] == ["ce_ref", "hidden", "kl", "nll", "none"]
    (ascent,) = (entry for entry in CATALOGUE["methods"]["forget"] if entry["name"] == "ascent")
    assert ascent["summary"] == "Gradient ascent: maximise the mean token loss on the forget answers."
    (perplexity,) = (metric for metric in CATALOGUE["metrics"] if metric["name"] == "retain.perplexity")
    assert perplexity["limits"] == {"minimum": 1.0}
    assert perplexity["better"] == "lower"
    assert (perplexity["about"], perplexity["sets"], perplexity["needs"]) == ("utility", ["retain"], [])
    (privleak,) = (metric for metric in CATALOGUE["metrics"] if metric["name"] == "muse.privleak")
    assert privleak["limits"] == {"minimum": -100.0}
    assert (privleak["about"], privleak["better"]) == ("forgetting", "higher")
    assert (privleak["sets"], privleak["needs"]) == (["forget", "holdout"], ["retrained"])
    assert CATALOGUE["profiles"][1]["name"] == "copyright"
    assert {"metric": "forget.rouge_l", "at_most": 0.3} in CATALOGUE["profiles"][1]["gates"]


def test_what_a_metric_is_measured_on_and_needs_are_fields_of_a_request() -> None:
    for metric in CATALOGUE["metrics"]:
        assert set(metric["sets"]) <= set(SETS) & set(Data.model_fields), metric
        assert set(metric["needs"]) <= set(Evaluation.model_fields), metric
        assert metric["sets"] or metric["needs"], metric


def test_every_method_and_alias_in_it_can_be_asked_for() -> None:
    data = {name: {"source": "upload", "dataset": f"ds_{name}01234"} for name in ("forget", "retain")}
    for name in [*(entry["name"] for entry in CATALOGUE["methods"]["forget"]), *CATALOGUE["methods"]["aliases"]]:
        parse({"model": "mdl_0123456789", "data": data, "method": {"name": name, **NEEDED_BY.get(name, {})}})


def test_it_is_json_and_nobody_can_change_it_for_others() -> None:
    text = json.dumps(CATALOGUE, allow_nan=False)
    mine = catalogue()
    mine["optimizers"].clear()
    mine["methods"]["aliases"]["GA"]["name"] = "changed"
    assert json.dumps(catalogue(), allow_nan=False) == text


def test_it_is_the_same_in_another_process() -> None:
    program = "import json; from core.spec.catalogue import catalogue; print(json.dumps(catalogue()))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert other == json.dumps(CATALOGUE) + "\n"
