"""Whatever the records are, scoring them gives numbers in their range or reasons, the same in batches of any size."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from core.data.encode import EncodedSet, encode
from core.errors import DataError
from core.evaluation import METRICS, Evidence, measured
from core.evaluation.membership import SCORES
from core.evaluation.rows import RowScore
from core.evaluation.scorer import Scorer
from core.report.schema import Absent, Measured, Measurement
from core.spec.job import parse
from core.spec.metrics import info
from core.spec.records import record_from
from core.tokens import Encoder, Example
from tests import tiny

Rows = Mapping[str, Sequence[RowScore]]
SLACK, NEW = 1e-4, 3
EVALUATION = {
    "max_new_tokens": NEW,
    "bootstrap": 100,
    "membership": ["loss", "zlib", "min_k", "min_k_plus_plus", "grad_norm"],
}

# Signs of several characters, marks that combine, joined letters, a script without spaces, what ends a sequence.
_WORDS = [
    "She",
    "casts",
    "bells",
    "👩‍👩‍👧",
    "🌊",
    "忘却の川",
    "سلام",
    "क्षि",
    "e\u0301\u0323",
    "ﬁ",
    "1843",
    "...",
    "</s>",
    "<s>",
]
words = st.lists(st.sampled_from(_WORDS), min_size=1, max_size=6).map(" ".join)
anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
short = words | anything | st.sampled_from(["a", ".", "🌊"])
LONG = "bells and " * 1000
answers = st.one_of(short, short, short, st.just(LONG))


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A record of any shape, with or without other wordings."""
    shape = draw(st.sampled_from(["question", "question", "question", "prompt", "text"]))
    if shape == "text":
        return {"text": draw(answers)}
    if shape == "prompt":
        return {"prompt": draw(short), "response": draw(answers)}
    row: dict[str, Any] = {"question": draw(short), "answer": draw(answers)}
    if draw(st.booleans()):
        row["paraphrased_answer"] = draw(short)
    if wrong := draw(st.lists(short, max_size=3)):
        row["perturbed_answer"] = wrong
    return row


@st.composite
def sets(draw: st.DrawFn) -> dict[str, list[dict[str, Any]]]:
    """A few sets of few records, some of which are in several, or in one twice."""
    few = draw(st.lists(rows(), min_size=1, max_size=3))
    others = ["retain", "holdout", "real_authors", "world_facts", "knowledge", "text", "seen", "harm_prompts"]
    names = ["forget", *draw(st.lists(st.sampled_from(others), unique=True, max_size=4))]
    return {name: draw(st.lists(st.sampled_from(few), min_size=1, max_size=3)) for name in names}


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """A random model that takes long answers."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8192,
    )
    return tiny.shaken(LlamaForCausalLM(config), 0)


_LONGER = {"question": "🌊", "answer": LONG, "paraphrased_answer": "a", "perturbed_answer": [LONG + "!", "."]}
_SHORT = {"question": "a", "answer": "a", "paraphrased_answer": "b", "perturbed_answer": ["a", "a"]}


@example({"forget": [_LONGER], "retain": [_SHORT], "holdout": [_LONGER, _SHORT]}, 8192)
@example({"forget": [_LONGER, _SHORT], "holdout": [{"text": LONG}], "text": [{"text": LONG}]}, 64)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sets(), st.sampled_from([64, 8192]))
def test_any_records(tokenizer: Any, model: Any, given_sets: dict[str, list[dict[str, Any]]], max_length: int) -> None:
    encoder = Encoder(tokenizer, "plain", max_length)
    encoded = fitting(given_sets, encoder)
    if "forget" not in encoded:
        return
    alone, together = (scored(encoded, encoder, model, tokens) for tokens in (64, 1_000_000))
    for metrics, _ in (alone, together):
        assert metrics.keys() == {name for name in METRICS if encoded.keys() >= set(info(name).sets)}
        for name, found in metrics.items():
            in_range(name, found)
    for name, data in encoded.items():
        for one, other, tokens in zip(alone[1][name], together[1][name], data.examples, strict=True):
            if not same_row(one, other, tokens, model):
                return
    for name, found in alone[0].items():
        same_metric(name, found, together[0][name], alone[1])
    # Against its own rows a model is as good as retrained.
    itself = measured(Evidence(alone[1], alone[1]), 100)
    assert value(itself.get("tofu.forget_quality"), 1) == 1
    assert value(itself.get("tofu.ks_distance"), 0) == value(itself.get("muse.privleak"), 0) == 0


def fitting(given_sets: Mapping[str, list[dict[str, Any]]], encoder: Encoder) -> dict[str, EncodedSet]:
    """The sets of which at least one record fits."""
    found = {}
    for name, own in given_sets.items():
        with suppress(DataError):
            found[name] = encode([record_from(row) for row in own], encoder, name)
    assert found.keys() == given_sets.keys() or encoder.max_length == 64
    return found


def scored(
    encoded: Mapping[str, EncodedSet], encoder: Encoder, model: Any, batch_tokens: int
) -> tuple[dict[str, Measurement], Rows]:
    data = {name: {"source": "jsonl", "path": name} for name in ("forget", "retain")}
    evaluation = EVALUATION | {"batch_tokens": batch_tokens}
    spec = parse({"model": "model", "data": data, "method": "GA", "evaluation": evaluation})
    scorer = Scorer(spec, model, encoder, encoded, tiny.silent, tiny.STOP)
    metrics = scorer.measure("before", 0)
    found = scorer.rows("before")
    assert found is not None
    return metrics, found


def in_range(name: str, found: Measurement) -> None:
    if isinstance(found, Absent):
        return
    known = info(name)
    ends = [found.value, *(end for end in (found.low, found.high) if end is not None)]
    assert all(math.isfinite(end) and end >= known.lowest for end in ends), name
    assert known.highest is None or max(ends) <= known.highest, name
    assert min(ends) == (found.value if found.low is None else found.low), name
    assert max(ends) == (found.value if found.high is None else found.high), name


def same_row(one: RowScore, other: RowScore, example: Example, model: Any) -> bool:
    """Whether rows are the same to rounding; not, where a near tie sent an argmax the other way."""
    assert (one.tokens, one.ends, one.zlib_bytes) == (other.tokens, other.ends, other.zlib_bytes)
    assert (one.generated is None) == (other.generated is None)
    pairs = [(one.paraphrase_loss, other.paraphrase_loss), (one.grad_norm, other.grad_norm)]
    pairs += zip(one.perturbed_losses, other.perturbed_losses, strict=True)
    for a, b in [(one.nll / max(1, one.tokens), other.nll / max(1, one.tokens)), *pairs]:
        assert a == b if a is None or b is None else a == pytest.approx(b, rel=SLACK, abs=SLACK)
    for name in ("log_probs", "mean_log_p", "std_log_p"):
        assert np.allclose(getattr(one, name), getattr(other, name), rtol=0, atol=SLACK), name
    if (one.hits != other.hits).any():
        logits = logits_of(model, example.ids)[example.start - 1 : -1]
        assert margin(logits[torch.from_numpy(one.hits != other.hits)]) < SLACK
        return False
    if one.generated != other.generated:
        ids, least = list(example.prompt), math.inf
        for _ in range(NEW):
            logits = logits_of(model, ids)[-1:]
            least, ids = min(least, margin(logits)), [*ids, int(logits.argmax())]
        assert least < SLACK
        return False
    return True


@torch.inference_mode()
def logits_of(model: Any, ids: Sequence[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


def margin(logits: torch.Tensor) -> float:
    """Of the rows of logits, (rows, vocab), the largest distance between the likeliest and the next."""
    first, second = logits.topk(2).values.T
    return float((first - second).max())


def same_metric(name: str, one: Measurement, other: Measurement, of: Rows) -> None:
    if not isinstance(one, Measured) or not isinstance(other, Measured):
        assert one == other, name
        return
    assert one.rows == other.rows, name
    slack = SLACK
    if name.startswith("membership."):
        # What is as good as equal may come out either way.
        forget, holdout = (SCORES[name.split(".")[1]].of(of[split]) for split in ("forget", "holdout"))
        equal = np.isclose(forget[:, None], holdout, rtol=10 * SLACK, atol=10 * SLACK)
        slack = float(equal.mean()) + 1e-9
    assert one.value == pytest.approx(other.value, rel=SLACK, abs=slack), name


def value(found: Measurement | None, instead: float) -> float:
    return found.value if isinstance(found, Measured) else instead
