"""Every loss against numpy in double precision, computed here from the logits that the model itself gives.

One fixed model, one fixed batch of uneven rows. The numbers in GOLDEN are the result, so that a change shows even where
both computations change together: Python 3.11, torch 2.13, x86-64; they hold to five digits on any other.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from core.tokens import Example
from tests import tiny

Array = NDArray[np.float64]
FORGET = tiny.rows(10, [(4, 6), (9, 2), (3, 13), (6, 1)])
RETAIN = tiny.rows(11, [(12, 3), (2, 9), (5, 5), (7, 7)])
GOLDEN = {
    "ascent": -4.752593,
    "npo": 13.546033,
    "simnpo": 0.6474735,
    "refusal": 4.752593,
    "nll": 4.420024,
    "kl": 0.1728530,
}


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    """Each loss as the trainer computes it, weights 1, after the model has left its reference."""
    found: dict[str, float] = {}
    methods: list[dict[str, Any]] = [{"name": n} for n in ("ascent", "npo", "refusal")]
    methods.append({"name": "simnpo", "weight": 1, "beta": 0.5, "delta": 0.7})
    for method, retain in zip(methods, ("nll", "kl", "none", "none"), strict=True):
        model = tiny.llama(seed=7)
        wanted = tiny.spec(method | {"retain": retain}, batch_size=4, micro_batch_tokens=64)
        trainer = tiny.trainer(wanted, model, {"forget": FORGET, "retain": RETAIN})
        tiny.nudge(model)
        losses = trainer.gradients(tiny.STOP)
        found[str(method["name"])] = losses["forget"].item()
        if retain != "none":
            found[retain] = losses["retain"].item()
    return found


@pytest.fixture(scope="module")
def by_hand() -> dict[str, float]:
    """The formulas of the design, written out."""
    reference = tiny.llama(seed=7)
    current = copy.deepcopy(reference)
    tiny.nudge(current)
    now = [log_softmax(answer_logits(current, row)) for row in FORGET]
    then = [log_softmax(answer_logits(reference, row)) for row in FORGET]
    n = [-picked(p, row) for p, row in zip(now, FORGET, strict=True)]
    n_ref = [-picked(p, row) for p, row in zip(then, FORGET, strict=True)]
    kept = [log_softmax(answer_logits(current, row)) for row in RETAIN]
    kept_ref = [log_softmax(answer_logits(reference, row)) for row in RETAIN]
    tokens = sum(len(x) for x in n)
    kept_tokens = sum(len(p) for p in kept)
    divergence = sum((np.exp(q) * (q - p)).sum() for p, q in zip(kept, kept_ref, strict=True))
    return {
        "ascent": -sum(x.sum() for x in n) / tokens,
        "refusal": sum(x.sum() for x in n) / tokens,
        "npo": -2 / 0.1 * np.mean([log_sigmoid(0.1 * (x.sum() - y.sum())) for x, y in zip(n, n_ref, strict=True)]),
        "simnpo": -2 / 0.5 * np.mean([log_sigmoid(0.5 * x.sum() / len(x) - 0.7) for x in n]),
        "nll": sum(-picked(p, row).sum() for p, row in zip(kept, RETAIN, strict=True)) / kept_tokens,
        "kl": divergence / kept_tokens,
    }


@pytest.mark.parametrize("name", list(GOLDEN))
def test_loss(name: str, measured: dict[str, float], by_hand: dict[str, float]) -> None:
    assert measured[name] == pytest.approx(by_hand[name], rel=1e-5)
    assert measured[name] == pytest.approx(GOLDEN[name], rel=1e-5)


def answer_logits(model: Any, row: Example) -> Array:
    """(answer tokens, vocab), from the model's own forward pass in double precision, without padding."""
    with torch.no_grad():
        logits: Array = copy.deepcopy(model).double()(torch.tensor([row.ids])).logits[0].numpy()
    return logits[row.start - 1 : -1]


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def picked(log_p: Array, row: Example) -> Array:
    answer = row.ids[row.start :]
    return log_p[np.arange(len(answer)), answer]


def log_sigmoid(x: float) -> float:
    return float(-np.log1p(np.exp(-x)))
