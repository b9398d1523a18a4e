"""Gates: what a wrong one is told, and which of them a request without their sets, tasks or attacks may not ask for."""

from typing import Any

import pytest

from core.spec.gates import Gate, gate_dict
from core.spec.job import parse
from core.spec.metrics import METRICS, info
from tests.spec.test_job import GOOD, problems

AUC = {"metric": "membership.min_k.auc", "at_least": 0.4, "at_most": 0.6}
SOURCE = {"source": "jsonl", "path": "another.jsonl"}


def asking(gate: Any, evaluation: Any = None, *sets: str) -> dict[str, Any]:
    """A request with this gate, what it evaluates, and sets beside forget and retain."""
    data = GOOD["data"] | dict.fromkeys(sets, SOURCE)
    return GOOD | {"data": data, "evaluation": evaluation or {}, "gates": [gate]}


ON_HOLDOUT = (
    "Allowed with relative_to 'holdout': forget.probability, forget.rouge_l, forget.rouge_l_f1, "
    "forget.exact_memorization, forget.extraction_strength."
)


# `field` is below the gate; "" is the gate itself, whose value is all of it.
@pytest.mark.parametrize(
    ("gate", "field", "message"),
    [
        ({"metric": "forget.rouge_l"}, "", "A gate needs at_most, at_least or both."),
        ({"metric": "forget.rouge_l", "at_most": None, "at_least": None}, "", "at_most, at_least or both"),
        ({"metric": "forget.rouge_l", "at_most": 0.1, "at_least": 0.3}, "", "at_least may not be above its at_most"),
        ({"metric": "forget.rouge_l", "at_most": float("nan")}, "at_most", "finite number (got NaN)"),
        ({"metric": "forget.rouge_l", "at_most": "low"}, "at_most", 'valid number (got "low")'),
        ({"metric": "forget.rouge_l", "at_most": 1, "interval": "wide"}, "interval", "valid boolean"),
        ({"metric": "forget.rouge_l", "atmost": 1}, "atmost", "Did you mean 'at_most'? Allowed: at_least, at_most,"),
        ({"metric": "forget.rouge_l", "at_most": 1, "relative_to": "after"}, "relative_to", "'before' or 'holdout'"),
        ({"at_most": 1}, "metric", "required"),
        ({"metric": ["forget.rouge_l"], "at_most": 1}, "metric", "valid string"),
        ({"metric": "forgot.rouge_l", "at_most": 1}, "metric", "Did you mean 'forget.rouge_l'? Allowed: few_shot."),
        ({"metric": "seen.bleu_200", "at_most": 1}, "metric", "Did you mean 'seen.bleu_300'?"),
        ({"metric": "lm_eval.arc_easy", "at_most": 1}, "metric", "Did you mean 'lm_eval.TASK.METRIC'?"),
        ({"metric": "lm_eval..acc", "at_most": 1}, "metric", "Unknown metric 'lm_eval..acc'."),
        ({"metric": "lm_eval.a b.acc", "at_most": 1}, "metric", "Unknown metric 'lm_eval.a b.acc'."),
        ({"metric": "relearn.rouge_l", "at_most": 1, "relative_to": "before"}, "", "Allowed relative_to: null."),
        ({"metric": "retain.rouge_l", "at_most": 1, "relative_to": "holdout"}, "", ON_HOLDOUT),
        ({"metric": "forget.truth_ratio", "at_least": 1, "relative_to": "holdout"}, "", ON_HOLDOUT),
        ({"metric": "holdout.rouge_l", "at_least": 1, "relative_to": "holdout"}, "", ON_HOLDOUT),
    ],
)  # fmt: skip
def test_a_wrong_gate_is_told_its_field_value_and_what_is_allowed(
    gate: dict[str, Any], field: str, message: str
) -> None:
    ((param, value, said),) = problems(asking(gate))
    assert param == ("gates.0" if not field else f"gates.0.{field}")
    sent = gate if not field else gate.get(field)
    assert value == (sent if sent == sent else "NaN")
    assert message in said


LM_EVAL = {"lm_eval": {"tasks": ["arc_easy"]}}
# Each request lacks one thing, by name; with it, it is accepted.
LACKING: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...], dict[str, Any], tuple[str, ...]]] = {
    "data.holdout": (AUC, {}, (), {}, ("holdout",)),
    "data.seen": ({"metric": "seen.bleu_100", "at_most": 0.1}, {}, ("unseen",), {}, ("seen", "unseen")),
    "data.world_facts": (
        {"metric": "tofu.model_utility", "at_least": 0.5},
        {},
        ("real_authors",),
        {},
        ("real_authors", "world_facts"),
    ),
    "evaluation.embedder": ({"metric": "forget.embedding_accuracy", "at_most": 1}, {}, (), {"embedder": "minilm"}, ()),
    "evaluation.classifier": (
        {"metric": "harm_prompts.toxic", "at_most": 0.1},
        {},
        ("harm_prompts",),
        {"classifier": "toxic-bert"},
        ("harm_prompts",),
    ),
    "evaluation.retrained": (
        {"metric": "tofu.forget_quality", "at_least": 0.05},
        {},
        (),
        {"retrained": "retrained"},
        (),
    ),
    "The attack 'quantize_int8' in evaluation.attacks": (
        {"metric": "quantize_int8.rouge_l", "at_most": 0.5},
        {"attacks": ["quantize"]},
        (),
        {"attacks": [{"name": "quantize", "bits": 8}]},
        (),
    ),
    "The task 'arc_easy' in evaluation.lm_eval.tasks": (
        {"metric": "lm_eval.arc_easy.acc", "at_least": 0.5},
        {"lm_eval": {"tasks": ["arc_challenge"]}},
        (),
        LM_EVAL,
        (),
    ),
    "'min_k' in evaluation.membership": (
        {"metric": "membership.min_k_10.auc", "at_most": 0.6},
        {"membership": ["loss", "min_k_plus_plus"]},
        ("holdout",),
        {"membership": ["min_k"]},
        ("holdout",),
    ),
    "'min_k_plus_plus' in evaluation.membership": (
        {"metric": "membership.min_k_plus_plus.tpr", "at_most": 0.6},
        {"membership": ["min_k"]},
        ("holdout",),
        {"membership": ["min_k_plus_plus"]},
        ("holdout",),
    ),
    "'grad_norm' in evaluation.membership": (
        {"metric": "membership.grad_norm.auc", "at_most": 0.6},
        {},
        ("holdout",),
        {"membership": ["grad_norm"]},
        ("holdout",),
    ),
    "evaluation.reference": (
        {"metric": "membership.reference.auc", "at_most": 0.6},
        {},
        ("holdout",),
        {"membership": ["reference"], "reference": "before"},
        ("holdout",),
    ),
}


@pytest.mark.parametrize("lacking", LACKING)
def test_a_gate_on_what_cannot_be_measured_is_refused(lacking: str) -> None:
    gate, less, fewer, more, sets = LACKING[lacking]
    ((param, value, said),) = problems(asking(gate, less, *fewer))
    assert (param, value) == ("gates.0.metric", gate["metric"])
    assert said == f"{lacking} is required by the gate on '{gate['metric']}'."
    assert parse(asking(gate, more, *sets)).gates == [Gate(**gate)]


def test_a_ratio_to_holdout_needs_that_set() -> None:
    gate = {"metric": "forget.probability", "relative_to": "holdout", "at_most": 1.5}
    ((param, _, said),) = problems(asking(gate))
    assert (param, said) == ("gates.0.metric", "data.holdout is required by the gate on 'forget.probability'.")
    assert parse(asking(gate, None, "holdout")).gates[0].on_holdout == "holdout.probability"


def test_the_rest_of_the_forget_set_is_enough_for_a_gate_on_retain() -> None:
    gate = {"metric": "retain.rouge_l", "at_least": 0.5}
    rest = {"forget": GOOD["data"]["forget"], "forget_ratio": 0.5, "self_retain": True}
    assert parse(asking(gate) | {"data": rest}).gates == [Gate(**gate)]


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"metric": "forget.rouge_l", "at_most": 0.3}, "forget.rouge_l <= 0.3"),
        ({"metric": "retain.rouge_l", "at_least": 0.9, "relative_to": "before"}, "retain.rouge_l / before >= 0.9"),
        (AUC, "0.4 <= membership.min_k.auc <= 0.6"),
        (
            {"metric": "forget.probability", "at_least": 0.5, "at_most": 1.5, "relative_to": "holdout"},
            "0.5 <= forget.probability / holdout <= 1.5",
        ),
        ({"metric": "muse.privleak", "at_least": -5, "at_most": -5}, "-5 <= muse.privleak <= -5"),
    ],
)
def test_a_gate_in_words(gate: dict[str, Any], words: str) -> None:
    assert Gate(**gate).describe() == words
    assert gate_dict(Gate(**gate)) == gate | {"interval": False}


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("lm_eval.arc_easy.acc", "higher"),
        ("lm_eval.wikitext.word_perplexity", "lower"),
        ("lm_eval.truthfulqa_mc2.acc", "higher"),
        ("lm_eval.wikitext.bits_per_byte", "lower"),
    ],
)
def test_a_task_of_lm_eval_speaks_of_utility(metric: str, better: str) -> None:
    known = info(metric)
    assert (known.about, known.better, known.sets, known.needs) == ("utility", better, (), ("lm_eval",))


@pytest.mark.parametrize("metric", ["", "forget", "forget.acc", "lm_evil.a.b"])
def test_no_other_name_is_a_metric(metric: str) -> None:
    with pytest.raises(KeyError):
        info(metric)


def test_every_metric_lies_in_a_range() -> None:
    assert all(metric.highest is None or metric.lowest < metric.highest for metric in METRICS.values())
    # Only what an attack gives has no value before the run.
    assert {name for name, metric in METRICS.items() if not metric.before} == {
        name for name, metric in METRICS.items() if "attacks" in metric.needs
    }
