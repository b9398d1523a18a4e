"""Small models, rows and losses for attacks, and the proof that a model was given back as it was."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from core.attacks import Target
from core.data.encode import EncodedSet
from core.evaluation.rows import RowScore
from core.events import StopFlag
from core.forward import collate, head, hidden_states
from core.spec.records import Record
from core.tokens import Example
from tests import tiny
from tests.core.test_architectures import FAMILIES

FORGET = tiny.rows(1, [(4, 5), (9, 3), (2, 8), (5, 5), (3, 6)])
RETAIN = tiny.rows(2, [(3, 6), (7, 2), (4, 4)])


def made(family: str) -> Any:
    """A random model of the family."""
    return tiny.shaken(AutoModelForCausalLM.from_config(FAMILIES[family]), 0)


def a_set(examples: Sequence[Example]) -> EncodedSet:
    """The rows with records that have other answers too."""
    records = [Record(f"q{i}", "a", paraphrased_answer="b", perturbed_answers=("c",)) for i in range(len(examples))]
    return EncodedSet(tuple(records), tuple(examples), ())


class Seen:
    """Scores a set by its losses, and keeps the set and the weights that it was scored under."""

    def __init__(self, model: Any, then: Callable[[], None] = lambda: None) -> None:
        self.model, self.then = model, then
        self.weights: dict[str, Tensor] = {}
        self.data = EncodedSet((), (), ())

    def __call__(self, data: EncodedSet) -> list[RowScore]:
        self.data = data
        self.weights = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.then()
        return losses(self.model, data.examples)


@torch.inference_mode()
def losses(model: Any, examples: Sequence[Example]) -> list[RowScore]:
    """Scores of the answers, one row at a time."""
    scored = []
    for e in examples:
        batch = collate(model, [e])
        nll = cross_entropy(head(model, hidden_states(model, batch)), batch.targets, reduction="sum")
        scored.append(RowScore(nll=float(nll), tokens=e.answer_tokens, ends=e.ends))
    return scored


def target(model: Any, score: Any = None, **fields: Any) -> Target:
    """What an attack on the rows above is given."""
    sets = {"forget": a_set(FORGET), "retain": a_set(RETAIN)}
    given: dict[str, Any] = {"encoder": None, "sets": sets, "seed": 0, "stop": StopFlag(), **fields}
    return Target(model=model, score=score or Seen(model), **given)


def digest(model: Any) -> str:
    """Of everything that an attack could leave changed."""
    whole = hashlib.sha256(model.config._attn_implementation.encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        whole.update(f"{name} {tensor.dtype} {tensor.requires_grad} {tensor.grad is None}".encode())
        whole.update(tensor.detach().numpy().tobytes())
    whole.update("".join(f"{name}{m.training}" for name, m in model.named_modules()).encode())
    return whole.hexdigest()


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """The block must leave the model as it finds it, and no gradient."""
    before = digest(model)
    yield
    assert digest(model) == before
    assert all(p.grad is None for p in model.parameters())


def probability(rows: Sequence[RowScore]) -> float:
    """Mean over rows of exp(-NLL/token)."""
    return float(torch.tensor([-row.nll / row.tokens for row in rows]).exp().mean())
