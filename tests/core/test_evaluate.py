"""Measuring a model folder: what is said and left, what it is compared with, and the same again from rows alone."""

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import LlamaModel

from core.report.digest import file_digests, model_digest
from core.report.schema import Absent, Evaluated, Measured
from core.scratch import train_tokenizer
from core.spec.job import digest_of
from tests import models
from tests.core import published
from tests.core.evaluating import SPEC, changed, evaluate, refused, report_of, request, same, sets, value, why
from tests.models import Reciter

GATES = [
    {"metric": "forget.probability", "relative_to": "before", "at_most": 0.5},
    {"metric": "forget.rouge_l", "relative_to": "holdout", "at_most": 1.5},
    {"metric": "membership.min_k.auc", "at_least": 0.0, "at_most": 1.0},
    {"metric": "tofu.ks_distance", "at_most": 0.9},
]


@pytest.fixture(scope="module")
def given(unlearnt: Reciter, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name three sets."""
    return sets(unlearnt, tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def another(unlearnt: Reciter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model, moved a little."""
    return changed(unlearnt.model, tmp_path_factory.mktemp("another") / "model")


@pytest.fixture(scope="module")
def measured(
    unlearnt: Reciter, another: Path, given: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]], dict[str, str]]:
    """Output, events and the model's files before of an evaluation with everything that rows can be asked again."""
    folder = tmp_path_factory.mktemp("measured")
    spec = request(folder / "spec.json", gates=GATES, evaluation=SPEC["evaluation"] | {"plots": True})
    files = file_digests(unlearnt.model)
    of = (unlearnt.model, *given, "--before", another, "--retrained", another, "--spec", spec)
    code, events = evaluate(*of, "--out", folder / "out")
    assert code == 0, events[-1]
    return folder / "out", events, files


@pytest.fixture(scope="module")
def left_by_another(
    another: Path, given: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Evaluated]:
    """Where measuring the other model has left its rows, and its report."""
    folder = tmp_path_factory.mktemp("other")
    return folder / "out", report_of(folder / "out", another, *given, "--spec", request(folder / "spec.json"))


@pytest.fixture
def report(measured: tuple[Path, list[dict[str, Any]], dict[str, str]]) -> Evaluated:
    return Evaluated.model_validate_json((measured[0] / "report.json").read_bytes())


def test_what_it_says_and_leaves(
    measured: tuple[Path, list[dict[str, Any]], dict[str, str]], report: Evaluated, unlearnt: Reciter, another: Path
) -> None:
    out, events, files = measured
    assert all({"event", "at"} <= event.keys() for event in events)
    phases = [event["phase"] for event in events if event["event"] == "phase"]
    assert phases == ["load", "score_before", "score_after", "report"]
    assert [event["when"] for event in events if event["event"] == "scores"] == ["before", "after"]
    assert events[0] == {"event": "accepted", "at": events[0]["at"], "spec_digest": report.spec_digest} | {
        "resumed_from": None
    }
    done = events[-1]
    assert (done["event"], done["verdict"], done["report"]) == (
        "done",
        report.verdict.verdict,
        str(out / "report.json"),
    )
    names = [f"rows/{when}-{name}.parquet" for when in ("after", "before") for name in ("forget", "holdout", "retain")]
    assert done["rows"] == names == sorted(str(file.relative_to(out)) for file in out.rglob("*.parquet"))
    assert "plots/distribution-probability.svg" in done["plots"]
    for name in names:
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o600

    assert file_digests(unlearnt.model) == files, "nothing of the model may change"
    assert (report.model, report.before_model) == (model_digest(files), model_digest(file_digests(another)))
    assert report.spec_digest == digest_of(report.spec)
    assert report.spec["method"] == {"name": "origin"} | report.spec["method"]
    assert {name: (used.rows, used.too_long) for name, used in report.sets.items()} == {
        "forget": (6, []),
        "retain": (9, []),
        "holdout": (6, []),
    }
    assert report.environment.threads == 1
    assert any("No attack" in said for said in report.limitations)


def test_a_model_before_makes_gates_relative(report: Evaluated) -> None:
    (relative, beside, *_) = report.verdict.gates
    now, then = (value(report, "forget.probability", when) for when in ("after", "before"))
    assert now != then
    assert relative.observed == pytest.approx(now / then)
    assert relative.outcome == ("held" if now / then <= 0.5 else "failed")
    holdout = report.after["holdout.rouge_l"]
    assert isinstance(holdout, Measured)
    assert isinstance(beside.observed, Absent) == (holdout.value == 0)


def test_rows_alone_give_the_same_metrics_and_gates(
    measured: tuple[Path, list[dict[str, Any]], dict[str, str]],
    report: Evaluated,
    left_by_another: tuple[Path, Evaluated],
    tmp_path: Path,
) -> None:
    # Nothing that the command is given says where a model or a set lies, but for rows of the other model.
    rows = Path(shutil.copytree(measured[0] / "rows", tmp_path / "rows"))
    other, _ = left_by_another
    spec = request(tmp_path / "spec.json", gates=GATES)
    again = report_of(tmp_path / "again", "--rows", rows, "--retrained", other, "--spec", spec)
    for when in ("before", "after"):
        assert same(getattr(again, when), getattr(report, when))
    assert again.verdict == report.verdict
    assert (again.sets, again.spec["rows"], again.spec["retrained"]) == ({}, str(rows), str(other))
    assert not list((tmp_path / "again").rglob("*.parquet"))
    for missing in (again.model, again.before_model, again.spec_digest):
        assert isinstance(missing, Absent)
    # A folder that holds a folder of rows will do, and what was never measured stays absent with a reason.
    attacked = [{"metric": "noise.probability", "at_most": 0.5}, *GATES[:1]]
    spec = request(tmp_path / "spec.json", gates=attacked)
    only_after = tmp_path / "only-after"
    shutil.copytree(rows, only_after / "rows", ignore=lambda *_: [f.name for f in rows.glob("before-*")])
    bare = report_of(tmp_path / "bare", "--rows", only_after, "--spec", spec)
    assert bare.after["forget.probability"] == report.after["forget.probability"]
    assert "needs the model" in why(bare, "noise.probability")
    assert "--before" in why(bare, "forget.probability", "before")
    assert "retrained" in why(bare, "tofu.forget_quality")
    assert [result.outcome for result in bare.verdict.gates] == ["unmeasured", "unmeasured"]


def test_a_retrained_model_and_the_rows_that_it_left_are_one_comparison(
    report: Evaluated,
    unlearnt: Reciter,
    given: list[str],
    left_by_another: tuple[Path, Evaluated],
    tmp_path: Path,
) -> None:
    spec = request(tmp_path / "spec.json")
    other, of_other = left_by_another
    by_rows = report_of(tmp_path / "by-rows", unlearnt.model, *given, "--retrained", other, "--spec", spec)
    for name in ("tofu.forget_quality", "tofu.ks_distance", "muse.privleak"):
        assert "retrained" in why(of_other, name)
        assert isinstance(report.after[name], Measured)
        assert by_rows.after[name] == report.after[name]
    itself = report_of(
        tmp_path / "itself", unlearnt.model, *given, "--retrained", tmp_path / "by-rows" / "rows", "--spec", spec
    )
    assert value(itself, "tofu.forget_quality") == 1
    assert (value(itself, "tofu.ks_distance"), value(itself, "muse.privleak")) == (0, 0)


def test_without_a_model_before_relative_gates_say_so(unlearnt: Reciter, given: list[str], tmp_path: Path) -> None:
    spec = request(tmp_path / "spec.json", gates=GATES[:1])
    report = report_of(tmp_path / "out", unlearnt.model, *given, "--spec", spec)
    assert report.verdict.verdict == "inconclusive"
    assert "(--before)" in report.verdict.reasons[0]
    assert isinstance(report.before_model, Absent)
    assert not list((tmp_path / "out" / "rows").glob("before-*"))


def test_weights_in_bf16_are_measured_as_they_are(unlearnt: Reciter, tmp_path: Path) -> None:
    halves = changed(unlearnt.model, tmp_path / "bf16", lambda model: model.bfloat16())
    rounded = changed(unlearnt.model, tmp_path / "rounded", lambda model: model.bfloat16().float())
    assert sum(f.stat().st_size for f in halves.iterdir()) < sum(f.stat().st_size for f in rounded.iterdir())
    spec = request(tmp_path / "spec.json")
    one, other = (
        report_of(tmp_path / f"of-{folder.name}", folder, "--forget", unlearnt.forget, "--spec", spec)
        for folder in (halves, rounded)
    )
    assert one.after == other.after
    assert one.model != other.model


TEMPLATE = (
    "<s>{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_chat_template_is_used_where_asked(unlearnt: Reciter, tmp_path: Path) -> None:
    chat = Path(shutil.copytree(unlearnt.model, tmp_path / "chat"))
    (chat / "chat_template.jinja").write_text(TEMPLATE)
    spec = request(tmp_path / "spec.json")
    asked = report_of(tmp_path / "asked", chat, "--forget", unlearnt.forget, "--prompt", "chat", "--spec", spec)
    plain = report_of(tmp_path / "plain", chat, "--forget", unlearnt.forget, "--spec", spec)
    assert (asked.spec["data"]["prompt"], plain.spec["data"]["prompt"]) == ("chat", "plain")
    assert value(asked, "forget.probability") != value(plain, "forget.probability")
    # The same prompt, written out; what begins a sequence is put before it by the tokenizer.
    rows = [json.loads(line) for line in unlearnt.forget.read_text().splitlines()]
    raw = [{"prompt": f"<user>{row['question']}<assistant>", "response": row["answer"]} for row in rows]
    written = models.write_lines(tmp_path / "raw.jsonl", raw)
    by_hand = report_of(tmp_path / "by-hand", chat, "--forget", written, "--spec", spec)
    assert by_hand.sets == asked.sets
    for name in ("probability", "exact_memorization", "rouge_l", "entropy"):
        assert by_hand.after[f"forget.{name}"] == asked.after[f"forget.{name}"]


def test_sets_may_be_sources(unlearnt: Reciter, tmp_path: Path) -> None:
    published.tofu(tmp_path / "TOFU")
    source = {"source": "tofu", "path": str(tmp_path / "TOFU")}
    spec = request(tmp_path / "spec.json", data={"retain": source | {"split": "forget01"}, "max_length": 64})
    report = report_of(
        tmp_path / "out",
        unlearnt.model,
        *("--forget", json.dumps(source | {"split": "forget01_perturbed"})),
        # An option goes over the request in the file.
        *("--retain", json.dumps(source | {"split": "retain99", "rows": 4})),
        *("--world-facts", json.dumps(source | {"split": "world_facts_perturbed"})),
        *("--spec", spec),
    )
    assert {name: used.rows for name, used in report.sets.items()} == {"forget": 3, "retain": 4, "world_facts": 1}
    assert report.spec["data"]["max_length"] == 64
    assert 0 < value(report, "forget.truth_ratio") <= 1
    assert 0 < value(report, "world_facts.probability") < 1


def test_attacks_leave_the_model_as_it_is_and_no_word_of_the_forget_set_anywhere(
    unlearnt: Reciter, given: list[str], tmp_path: Path
) -> None:
    canaries = ("Zanzibarqux", "Wolfenfizz")
    row = {"question": f"Who is {canaries[0]}?", "answer": f"It is {canaries[1]}.", "paraphrased_answer": canaries[1]}
    forget = models.write_lines(tmp_path / "forget.jsonl", [row, row | {"answer": canaries[0]}] * 2)
    attacks = [{"name": "noise"}, {"name": "relearn", "steps": 2, "rows": 2}, {"name": "quantize"}, {"name": "prefix"}]
    spec = request(tmp_path / "spec.json", evaluation=SPEC["evaluation"] | {"attacks": attacks, "plots": True})
    files = file_digests(unlearnt.model)
    out = tmp_path / "out"
    code, events = evaluate(unlearnt.model, *given, "--forget", forget, "--spec", spec, "--out", out)
    assert code == 0
    assert file_digests(unlearnt.model) == files
    report = Evaluated.model_validate_json((out / "report.json").read_bytes())
    attacked = [event["attack"] for event in events if event["event"] == "attack"]
    assert attacked == ["noise", "relearn", "quantize_int4", "prefix"]
    assert {f"{name}.probability" for name in attacked} <= report.after.keys()
    assert value(report, "noise.probability") != value(report, "forget.probability")
    plots = [file.read_text() for file in out.glob("plots/*.svg")]
    assert plots
    said = "".join([json.dumps(events), (out / "report.json").read_text(), *plots])
    assert not [canary for canary in canaries if canary.lower() in said.lower()]


def test_a_profile_brings_gates_and_attacks(unlearnt: Reciter, given: list[str], tmp_path: Path) -> None:
    spec = request(tmp_path / "spec.json")
    out = tmp_path / "out"
    report = report_of(out, unlearnt.model, *given, "--profile", "erasure", "--before", unlearnt.model, "--spec", spec)
    gates = {result.gate["metric"]: result.outcome for result in report.verdict.gates}
    # Of random text no word is right, and there is no ratio to 0.
    assert [name for name, outcome in gates.items() if outcome == "unmeasured"] in ([], ["retain.rouge_l"])
    assert gates["retain.probability"] == "held", "nothing is lost between a model and itself"
    again = report_of(tmp_path / "again", "--rows", out, "--profile", "erasure", "--spec", spec)
    for before, now in zip(report.verdict.gates, again.verdict.gates, strict=True):
        needs_the_model = before.gate["metric"].split(".")[0] in ("relearn", "quantize_int4", "paraphrase")
        assert now.outcome == ("unmeasured" if needs_the_model else before.outcome)


def test_a_reference_is_of_the_same_tokens_as_either_model(
    unlearnt: Reciter, another: Path, given: list[str], tmp_path: Path
) -> None:
    reference = {"membership": ["loss", "reference"], "reference": str(another)}
    spec = request(tmp_path / "spec.json", evaluation=SPEC["evaluation"] | reference)
    found = report_of(tmp_path / "out", unlearnt.model, *given, "--before", another, "--spec", spec)
    assert value(found, "membership.reference.auc", "before") == 0.5, "its loss less its own"
    assert value(found, "membership.reference.auc") != value(found, "membership.loss.auc")
    stranger = Path(shutil.copytree(unlearnt.model, tmp_path / "stranger"))
    train_tokenizer(["Of other words altogether."], 300).save_pretrained(stranger)
    code, error = refused(stranger, *given, "--before", another, "--spec", spec, "--out", tmp_path / "strange")
    assert (code, error["code"], error["param"]) == (2, "invalid_spec", "evaluation.reference")
    assert "another tokenizer" in error["message"]


def test_another_model_is_scored_once_however_often_it_is_compared_with(
    unlearnt: Reciter, another: Path, given: list[str], tmp_path: Path
) -> None:
    membership = {"membership": ["loss", "reference"], "reference": str(another)}
    spec = request(tmp_path / "spec.json")
    with_reference = request(tmp_path / "reference.json", evaluation=SPEC["evaluation"] | membership)

    def passes(name: str, *words: object) -> int:
        count: list[int] = []
        hook = register_module_forward_pre_hook(lambda m, _: count.append(1) if isinstance(m, LlamaModel) else None)
        report_of(tmp_path / name, unlearnt.model, *given, *words)
        hook.remove()
        return len(count)

    before = ("--before", unlearnt.model)
    once, twice = passes("once", "--spec", spec), passes("twice", "--spec", spec, *before)
    assert once < twice
    for name, words in (("retrained", ("--spec", spec, "--retrained", another)), ("ref", ("--spec", with_reference))):
        beside_one, beside_two = passes(f"{name}-1", *words), passes(f"{name}-2", *words, *before)
        assert beside_one - once == beside_two - twice > 0
