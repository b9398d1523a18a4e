"""Looks along the way: when they end training, which one is delivered, what they cost, and that they change no bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.data.encode import EncodedSet
from core.errors import SpecError
from core.evaluation.scorer import Scorer
from core.looks import Bar
from core.model import save
from core.report.schema import Measured, TrainingDone
from core.spec.gates import Gate
from core.spec.job import JobSpec, parse
from core.spec.records import Record
from core.tokens import Encoder
from core.watching import Watcher
from tests import tiny
from tests.core.recording import QUICK, Recorder, carry_out, interrupted
from tests.models import PASSES, Reciter

FORGET = {"metric": "forget.probability", "relative_to": "before", "at_most": 0.3}
KEEP = {"metric": "retain.probability", "relative_to": "before", "at_least": 0.9}
# What no model reaches, so that training goes to its end.
NEVER = FORGET | {"at_most": 0}
SHORT = QUICK | {"plots": False}


def watched(unlearnt: Reciter, gates: list[dict[str, Any]], steps: int = 12, **fields: Any) -> dict[str, Any]:
    """A request of the random model that looks after every step; `fields` may say otherwise."""
    training = {"steps": steps, "batch_size": 3, "stop_when": {"every": 1}}
    given = {"method": "GradDiff", "optimizer": {"name": "adamw", "lr": 3e-3}, "evaluation": SHORT, "gates": gates}
    return unlearnt.spec(**{**given, "training": training, **fields})


def without_looks(request: dict[str, Any]) -> dict[str, Any]:
    """The same request, trained to its last step."""
    return {**request, "training": {**request["training"], "stop_when": None}}


def delivered_as_of(request: dict[str, Any], out: Path, step: int, undisturbed: Path) -> bool:
    """Whether a run has delivered the very weights that training without a look has after this step."""
    interrupted(without_looks(request), undisturbed, step)
    then = load_file(undisturbed / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")
    now = load_file(out / "model" / "model.safetensors")
    return bool(then) and all(torch.equal(tensor, now[name]) for name, tensor in then.items())


def texts_at(training: TrainingDone) -> list[int]:
    return [int(look["step"]) for look in training.looks if look["texts"]]


def test_the_reciter_has_forgotten_enough_long_before_the_last_step(reciter: Reciter, tmp_path: Path) -> None:
    training = PASSES["training"] | {"stop_when": {"every": 1}}
    request = reciter.spec(**PASSES | {"training": training, "evaluation": SHORT | {"max_new_tokens": 40}})
    heard = Recorder()
    report = carry_out(request, tmp_path / "out", heard).report
    done = report.training
    assert report.verdict.verdict == "passed"
    assert done.stopped_early
    assert 0 < done.steps < done.planned_steps == 30
    assert len(heard.of("step")) == len(done.curve) == done.steps
    assert [look["step"] for look in done.looks] == list(range(done.steps + 1))

    first, *between, last = done.looks
    assert done.delivered_step == last["step"] == done.steps
    assert (first["forgetting"], first["enough"], last["enough"]) == (0, 0, 1)
    # Few rows, all of which are looked at: a look measures what the scores do.
    assert last["forget.probability"] == pytest.approx(value(report.after["forget.probability"]), rel=1e-4)
    assert first["retain.probability"] == pytest.approx(value(report.before["retain.probability"]), rel=1e-4)
    for look in (first, *between, last):
        within = look["retain.probability"] >= 0.9 * first["retain.probability"]
        assert look["within_budget"] == within
        # From 0 where it stood at first to 1 where the gate holds.
        gone = (first["forget.probability"] - look["forget.probability"]) / (first["forget.probability"] - 0.1)
        assert look["forgetting"] == pytest.approx(min(1, gone))
    # Some forget enough and have lost too much; texts are generated when nothing else is left to ask.
    assert any(look["forgetting"] == 1 and not look["within_budget"] for look in between)
    assert texts_at(done) == [0, done.steps]
    assert delivered_as_of(request, tmp_path / "out", done.steps, tmp_path / "plain")
    assert not (tmp_path / "out" / "best").exists()


def value(measurement: Any) -> float:
    return float(measurement.value)


def test_where_later_looks_lose_too_much_an_earlier_one_is_delivered(unlearnt: Reciter, tmp_path: Path) -> None:
    request = watched(unlearnt, [NEVER, KEEP], steps=6, method="GA")
    done = carry_out(request, tmp_path / "out").report.training
    within = [look["within_budget"] for look in done.looks[1:]]
    assert within == sorted(within, reverse=True)
    assert 0 < sum(within) < 6, "some must be inside the budget, and then none"
    assert (done.steps, done.stopped_early, done.delivered_step) == (6, False, sum(within))
    assert delivered_as_of(request, tmp_path / "out", done.delivered_step, tmp_path / "plain")


def test_of_the_looks_inside_the_budget_the_one_that_forgot_most(unlearnt: Reciter, tmp_path: Path) -> None:
    # A rate so high that what was gained is lost again.
    request = watched(unlearnt, [NEVER, KEEP | {"at_least": 0}], 8, method="NPO", optimizer={"name": "sgd", "lr": 10})
    done = carry_out(request, tmp_path / "out").report.training
    forgetting = [look["forgetting"] for look in done.looks[1:]]
    assert max(forgetting) > forgetting[-1]
    assert done.delivered_step == 1 + forgetting.index(max(forgetting)) < 8
    assert delivered_as_of(request, tmp_path / "out", done.delivered_step, tmp_path / "plain")


def test_where_no_look_is_inside_the_budget_the_last_step_is_delivered(unlearnt: Reciter, tmp_path: Path) -> None:
    fast = {"name": "adamw", "lr": 0.03}
    request = watched(unlearnt, [FORGET, KEEP], 4, method="GA", optimizer=fast)
    done = carry_out(request, tmp_path / "out").report.training
    assert [look["within_budget"] for look in done.looks] == [1, 0, 0, 0, 0]
    assert done.looks[-1]["forgetting"] == 1
    assert (done.steps, done.stopped_early, done.delivered_step) == (4, False, 4)
    assert delivered_as_of(request, tmp_path / "out", 4, tmp_path / "plain")


def test_of_adapters_too_an_earlier_step_is_delivered(unlearnt: Reciter, tmp_path: Path) -> None:
    request = watched(unlearnt, [NEVER, KEEP], steps=4, method="GA", optimizer={"name": "adamw", "lr": 0.03})
    request["training"]["adapter"] = {"name": "lora", "deliver": "adapter"}
    done = carry_out(request, tmp_path / "out").report.training
    assert 0 < done.delivered_step < done.steps
    interrupted(without_looks(request), tmp_path / "plain", done.delivered_step)
    then = tmp_path / "plain" / "checkpoints" / f"step-{done.delivered_step:08d}" / "weights.safetensors"
    # By other names in either file.
    kept, wanted = load_file(tmp_path / "out" / "model" / "adapter_model.safetensors"), load_file(then)
    assert sorted(t.numpy().tobytes() for t in kept.values()) == sorted(t.numpy().tobytes() for t in wanted.values())


def test_without_a_gate_on_utility_a_share_of_retain_must_stay(unlearnt: Reciter, tmp_path: Path) -> None:
    request = watched(unlearnt, [NEVER], 6, method="GA", optimizer={"name": "adamw", "lr": 1e-3})
    request["training"]["stop_when"]["budget"] = 0.98
    first, *looks = carry_out(request, tmp_path).report.training.looks
    shares = [look["retain.probability"] / first["retain.probability"] for look in looks]
    assert [look["within_budget"] for look in looks] == [share >= 0.98 for share in shares]
    assert max(shares) > 0.98 > min(shares) > 0.9, "the budget that is a default would not show"


def test_what_was_before_is_the_model_as_given_also_where_training_begins_elsewhere(
    unlearnt: Reciter, tokenizer: Any, tmp_path: Path
) -> None:
    # So much surer of other things that its looks could not be taken for those of the model as given.
    save(tiny.shaken(tiny.llama(vocab=len(tokenizer)), 1, spread=0.5), tokenizer, tmp_path / "base")
    method = {"name": "retrain", "base": str(tmp_path / "base")}
    report = carry_out(watched(unlearnt, [FORGET, KEEP], 2, method=method), tmp_path / "out").report
    first, after = report.training.looks[:2]
    for metric in ("forget.probability", "retain.probability"):
        assert first[metric] == pytest.approx(value(report.before[metric]), rel=1e-4)
        assert after[metric] < 0.9 * first[metric]
    assert after["within_budget"] == 0


def test_looking_changes_no_weight(unlearnt: Reciter, tmp_path: Path) -> None:
    # Curvature samples labels, and random_label draws them.
    sophia = {"name": "sophia_g", "lr": 1e-3, "every": 2}
    for method in ("NPO", "random_label"):
        request = watched(unlearnt, [NEVER, KEEP | {"at_least": 0}], 6, method=method, optimizer=sophia)
        request["gates"].append({"metric": "forget.rouge_l", "at_most": 0.9})
        seen, unseen = tmp_path / method / "seen", tmp_path / method / "unseen"
        done = carry_out(request, seen, keep_checkpoints=None).report.training
        assert len(done.looks) == 7
        carry_out(without_looks(request) | {"evaluation": SHORT | {"watch_rows": 0}}, unseen)
        # Where an earlier step is delivered the last one's weights lie in a checkpoint.
        last = seen / "checkpoints" / "step-00000006" / "weights.safetensors"
        trained = load_file(last if last.exists() else seen / "model" / "model.safetensors")
        plain = load_file(unseen / "model" / "model.safetensors")
        assert all(torch.equal(tensor, plain[name]) for name, tensor in trained.items())


def test_texts_are_asked_again_after_twice_as_many_looks(unlearnt: Reciter, tmp_path: Path) -> None:
    # The first gate holds of any model, and the other of none.
    gates = [{"metric": "forget.probability", "at_most": 0.9}, {"metric": "forget.rouge_l", "at_most": -1}]
    done = carry_out(watched(unlearnt, gates, 18, optimizer={"name": "adamw", "lr": 1e-4}), tmp_path).report.training
    assert texts_at(done) == [0, 1, 2, 4, 8, 16]
    assert all(("forget.rouge_l" in look) == bool(look["texts"]) for look in done.looks)
    # Whether texts were asked says nothing of how much is forgotten: among equals it is the last.
    assert {look["forgetting"] for look in done.looks} == {1}
    assert (done.steps, done.stopped_early, done.delivered_step) == (18, False, 18)


def test_texts_are_not_asked_while_another_gate_fails(unlearnt: Reciter, tmp_path: Path) -> None:
    gates = [NEVER, KEEP | {"at_least": 0}, {"metric": "forget.rouge_l", "at_most": 0.9}]
    done = carry_out(watched(unlearnt, gates, 4), tmp_path).report.training
    assert texts_at(done) == [0]
    assert not done.stopped_early


def test_a_profile_s_gate_on_a_set_that_was_not_given_cannot_be_looked_at(unlearnt: Reciter, tmp_path: Path) -> None:
    # What is left of the profile's gates without a holdout set can be looked at, and none of it is about forgetting.
    granted = {"metric": "forget.extraction_strength", "at_most": 1}
    request = watched(unlearnt, [granted], 2, profile="erasure", evaluation=SHORT | {"attacks": []})
    with pytest.raises(SpecError, match=r"training\.stop_when needs a gate on forgetting"):
        carry_out(request, tmp_path)


def rows_of(tokens: int, count: int = 100) -> EncodedSet:
    """Rows that are all of so many tokens."""
    return EncodedSet((Record("Who?", "She."),) * count, tiny.rows(0, [(tokens - 10, 10)]) * count, ())


def watcher(tokenizer: Any, spec: JobSpec, steps: int, tokens: dict[str, int]) -> Watcher:
    """A watcher of sets of a hundred rows, each of so many tokens; nothing is computed."""
    sets = {name: rows_of(of) for name, of in tokens.items()}
    model = tiny.llama()
    trained = {name: sets[name].examples for name in ("forget", "retain")}
    scorer = Scorer(spec, model, Encoder(tokenizer, "plain", 128), sets, tiny.silent, tiny.STOP)
    return Watcher(scorer, tiny.trainer(spec, model, trained, steps), Path("nowhere"))


@pytest.mark.parametrize(
    ("method", "stop_when", "steps", "every"),
    [
        # 32 rows of 20 and 32 of 30 tokens are 1600. A step sees 4 of each, 200 tokens, and costs three passes over
        # them: at a tenth of that a look is paid for by 1600 / (0.3 * 200) = 26.7 steps.
        ("GradDiff", {}, 1000, 27),
        # Without a retain term a step sees 80 tokens only: 1600 / (0.3 * 80) = 66.7.
        ("GA", {}, 1000, 67),
        ("GradDiff", {"rows": 8}, 1000, 7),
        ("GradDiff", {"rows": 1000}, 1000, 84),
        ("GradDiff", {"every": 3}, 1000, 3),
        # Without stop_when 16 rows of each are looked at: 800 / 60 = 13.3, but ten times are enough.
        ("GradDiff", None, 1000, 100),
        ("GradDiff", None, 101, 14),
        ("GradDiff", None, 5, 14),
    ],
)
def test_looks_cost_a_tenth_of_training(
    tokenizer: Any, method: str, stop_when: dict[str, Any] | None, steps: int, every: int
) -> None:
    spec = parse(_request(method, stop_when, [FORGET]))
    assert watcher(tokenizer, spec, steps, {"forget": 20, "retain": 30}).every == every


def _request(method: str, stop_when: dict[str, Any] | None, gates: list[dict[str, Any]], seed: int = 0) -> Any:
    data = {name: {"source": "jsonl", "path": name} for name in ("forget", "retain", "holdout")}
    training = {"stop_when": stop_when, "batch_size": 4}
    return {"model": "model", "data": data, "method": method, "training": training, "gates": gates, "seed": seed}


def test_a_set_is_looked_at_where_a_gate_asks_for_it(tokenizer: Any) -> None:
    sets = {"forget": 20, "retain": 30, "holdout": 40}
    membership = {"metric": "membership.min_k.auc", "at_most": 0.6}
    without, with_holdout = (
        watcher(tokenizer, parse(_request("GradDiff", {}, gates)), 1000, sets)
        for gates in ([FORGET], [FORGET, membership])
    )
    assert (set(without.rows), without.every) == ({"forget", "retain"}, 27)
    # 32 rows of 40 tokens more: 2880 / 60.
    assert (set(with_holdout.rows), with_holdout.every) == (set(sets), 48)


def test_rows_are_drawn_by_the_seed_set_by_set(tokenizer: Any) -> None:
    def rows(seed: int) -> dict[str, list[int]]:
        spec = parse(_request("GradDiff", {"rows": 40}, [FORGET], seed))
        return {
            name: list(own) for name, own in watcher(tokenizer, spec, 10, {"forget": 20, "retain": 30}).rows.items()
        }

    one, other = rows(0), rows(1)
    assert one == rows(0) != other
    assert one["forget"] != one["retain"]
    for own in (*one.values(), *other.values()):
        assert own == sorted(set(own))
        assert (len(own), own[0] >= 0, own[-1] < 100) == (40, True, True)
    # Not simply the first: of a hundred rows, drawn at random, some lie in each quarter.
    assert {row // 25 for row in one["forget"]} == {0, 1, 2, 3}


def test_a_look_whose_texts_nobody_saw_is_not_delivered(unlearnt: Reciter, tmp_path: Path) -> None:
    # The first gate never holds, so nothing ends training; the last is of the budget, on texts, and holds of any.
    gates = [NEVER, KEEP, {"metric": "forget.entropy", "at_least": 0}]
    done = carry_out(watched(unlearnt, gates, 7, optimizer={"name": "adamw", "lr": 1e-4}), tmp_path).report.training
    assert texts_at(done) == [0, 1, 2, 4, 7]
    assert {look["within_budget"] == look["texts"] for look in done.looks} == {True}
    assert (done.stopped_early, done.delivered_step) == (False, 7)


def test_a_look_whose_texts_babble_is_not_delivered(unlearnt: Reciter, tmp_path: Path) -> None:
    gates = [NEVER, KEEP, {"metric": "forget.entropy", "at_least": 1e6}]
    done = carry_out(watched(unlearnt, gates, 5, optimizer={"name": "adamw", "lr": 1e-4}), tmp_path).report.training
    assert {look["within_budget"] for look in done.looks} == {0}
    # None was inside the budget, and then it is the last step.
    assert (done.stopped_early, done.delivered_step) == (False, 5)


def values(**of: float) -> dict[str, Measured]:
    return {f"forget.{name}": Measured(value=v, rows=8, low=v, high=v) for name, v in of.items()}


def test_what_a_look_without_texts_is_worth() -> None:
    gone, fluent = Gate(metric="forget.probability", at_most=0.1), Gate(metric="forget.repetition", at_most=0.3)
    bar = Bar([gone], [fluent], [])
    first = bar.judged(values(probability=0.9, repetition=0.0), [], texts=True)
    half = values(probability=0.5)
    assert bar.judged(half, [first], texts=False) == {
        "forget.probability": 0.5,
        "forgetting": pytest.approx(0.5),
        "within_budget": 0,
        "texts": 0,
        "enough": 0,
    }
    assert bar.worth_texts(half, [first], 0.0, last=False)
    # Another that forgot more was inside the budget: this one would not be delivered.
    assert not bar.worth_texts(half, [first], 0.6, last=True)
    babbled = bar.judged(half | values(repetition=0.9), [first], texts=True)
    assert (babbled["within_budget"], babbled["enough"]) == (0, 0)
    plain = bar.judged(half, [first, babbled], texts=False)
    asked = [first, babbled, plain, babbled]
    assert not bar.worth_texts(half, asked, 0.0, last=False), "asked twice: the next is due two looks later"
    assert bar.worth_texts(half, asked, 0.0, last=True)
    assert bar.worth_texts(half, [*asked, plain], 0.0, last=False)
    # Where the only gate on texts is about forgetting, texts cannot put a look inside the budget.
    silent = Bar([gone], [Gate(metric="forget.rouge_l", at_most=0.5)], [])
    assert not silent.worth_texts(half, [first], 0.0, last=True)
    assert silent.judged(half, [first], texts=False)["within_budget"] == 1
