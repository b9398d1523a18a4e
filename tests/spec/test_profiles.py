"""Profiles: each is a request's gates and attacks by name, under the request's own; all of it is hashed."""

from typing import Any

import pytest

from core.spec.gates import Gate
from core.spec.job import JobSpec, parse
from core.spec.profiles import PROFILES, from_profile, with_profile
from tests.spec.test_job import GOOD, problems

PLAIN = {key: value for key, value in GOOD.items() if key != "gates"}
SOURCE = {"source": "jsonl", "path": "another.jsonl"}


def resolved(name: str, **own: Any) -> JobSpec:
    return parse(PLAIN | {"profile": name} | own)


@pytest.mark.parametrize("name", PROFILES)
def test_by_name_it_is_its_gates_and_attacks(name: str) -> None:
    profile, spec = PROFILES[name], resolved(name)
    assert spec.gates == [Gate(**gate) for gate in profile.gates]
    written = PLAIN | {"gates": list(profile.gates), "evaluation": {"attacks": list(profile.attacks)}}
    assert spec.evaluation.attacks == parse(written | {"gates": []}).evaluation.attacks
    # Its gates are on its own attacks, or on sets that a request may have.
    sets = {split for gate in spec.gates for split in gate.sets}
    labels = [attack.label for attack in spec.evaluation.attacks]
    for gate in spec.gates:
        first = gate.metric.split(".")[0]
        assert first in labels or first in sets | {"membership"}, gate
    assert {label for label in labels if any(gate.metric.startswith(label) for gate in spec.gates)} == set(labels)


@pytest.mark.parametrize("name", PROFILES)
def test_what_was_resolved_resolves_to_itself(name: str) -> None:
    spec = resolved(name, gates=[{"metric": "forget.rouge_l", "at_most": 0.2}])
    again = parse(spec.model_dump(mode="json"))
    assert again == spec
    assert again.digest() == spec.digest()


@pytest.mark.parametrize("name", PROFILES)
def test_a_set_that_was_not_given_is_no_error_of_a_profile(name: str) -> None:
    alone = PLAIN | {"data": {"forget": GOOD["data"]["forget"]}, "method": "npo", "optimizer": "adamw"}
    spec = parse(alone | {"profile": name})
    assert not spec.data.has_retain
    assert "retain.rouge_l" in [gate.metric for gate in spec.gates]


def test_an_own_gate_takes_the_place_of_the_profiles_on_the_same_metric() -> None:
    own = [{"metric": "forget.rouge_l", "at_most": 0.1}, {"metric": "retain.perplexity", "at_most": 20}]
    spec = resolved("erasure", gates=own)
    assert spec.gates[:2] == [Gate(**gate) for gate in own]
    assert spec.gates[2:] == [Gate(**gate) for gate in PROFILES["erasure"].gates if gate["metric"] != "forget.rouge_l"]


def test_an_own_gate_is_refused_by_its_own_place() -> None:
    own = [{"metric": "forget.rouge_l", "at_most": 0.1}, {"metric": "membership.min_k.auc", "at_most": 0.55}]
    request = PLAIN | {"profile": "erasure", "gates": own}
    said = "data.holdout is required by the gate on 'membership.min_k.auc'."
    assert problems(request) == [("gates.1.metric", "membership.min_k.auc", said)]
    parse(request | {"data": GOOD["data"] | {"holdout": SOURCE}})


@pytest.mark.parametrize(("own", "labels"), [(["noise", "prefix"], ["noise", "prefix"]), ([], [])])
def test_own_attacks_take_the_place_of_the_profiles(own: list[Any], labels: list[str]) -> None:
    spec = resolved("erasure", evaluation={"attacks": own})
    assert [attack.label for attack in spec.evaluation.attacks] == labels
    assert spec.gates == resolved("erasure").gates


def test_other_fields_of_evaluation_stay() -> None:
    spec = resolved("harm", evaluation={"bootstrap": 200})
    assert spec.evaluation.bootstrap == 200
    assert [attack.label for attack in spec.evaluation.attacks] == ["relearn", "few_shot"]


def test_the_digest_holds_every_threshold() -> None:
    plain = {name: resolved(name).digest() for name in PROFILES}
    assert len({*plain.values(), parse(PLAIN).digest()}) == 4
    for name, profile in PROFILES.items():
        for gate in profile.gates:
            side = "at_most" if "at_most" in gate else "at_least"
            moved = gate | {side: gate[side] * 1.01}
            if gate.get("relative_to") != "holdout" and not gate["metric"].startswith(("membership", "seen", "harm")):
                assert resolved(name, gates=[moved]).digest() != plain[name], gate


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ersure", "Unknown profile 'ersure'. Did you mean 'erasure'? Allowed: copyright, erasure, harm."),
        ("", "Allowed: copyright, erasure, harm."),
        (7, "Allowed: copyright, erasure, harm."),
        (["erasure"], "Allowed: copyright, erasure, harm."),
    ],
)
def test_an_unknown_profile_is_refused(name: Any, message: str) -> None:
    ((param, value, said),) = problems(PLAIN | {"profile": name})
    assert (param, value) == ("profile", name)
    assert message in said


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"gates": None}, "gates"), ({"evaluation": 3}, "evaluation"), ({"gates": [3]}, "gates.0")],
)
def test_what_is_wrong_beside_a_profile_is_still_found(fields: dict[str, Any], param: str) -> None:
    ((found, value, _),) = problems(PLAIN | {"profile": "copyright"} | fields)
    assert (found, value) == (param, fields[param.split(".")[0]] if "." not in param else 3)


def test_a_verdict_that_cannot_be_passed_is_foreseen() -> None:
    whole = {name: {**SOURCE, "path": f"{name}.jsonl"} for name in ("forget", "retain", "holdout")}
    assert resolved("erasure", data=whole).foreseen() == []
    (lacking,) = resolved("erasure", data={**whole, "holdout": None}).foreseen()
    assert lacking.startswith("gates: The verdict cannot be passed: data.holdout is lacking")
    assert "'forget.probability'" in lacking
    assert "'membership.min_k.auc'" in lacking
    for gates in ([], [{"metric": "retain.probability", "relative_to": "before", "at_least": 0.9}]):
        (nothing,) = parse(PLAIN | {"data": whole, "gates": gates}).foreseen()
        assert "no gate speaks of forgetting" in nothing


def test_nobody_can_change_a_profile_for_others() -> None:
    request = with_profile({"profile": "harm"})
    before = [dict(gate) for gate in from_profile("harm")]
    request["gates"][0]["at_most"] = 1
    request["evaluation"]["attacks"][0]["steps"] = 1
    assert from_profile("harm") == before
    assert with_profile({"profile": "harm"})["evaluation"]["attacks"] == [{"name": "relearn"}, {"name": "few_shot"}]
    assert from_profile(None) == []


@pytest.mark.parametrize("request_", [None, [], {}, {"profile": None}, {"gates": []}])
def test_without_a_profile_nothing_is_put_in(request_: Any) -> None:
    assert with_profile(request_) == request_
