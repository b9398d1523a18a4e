"""The norm of the gradient of a row's loss (arXiv:2402.17012): what a model has learnt by heart pulls at it no more.

One row at a time: in a batch of several only the sum of their gradients is there.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from core.events import StopFlag
from core.forward import collate, head, hidden_states
from core.tokens import Example


def grad_norms(
    model: PreTrainedModel, examples: Sequence[Example], stop: StopFlag, advance: Callable[[int], None] = lambda _: None
) -> list[float | None]:
    """Euclidean norm, over all weights, of the gradient of each row's token-mean loss, end of sequence not counted;
    None for a row of nothing else. The model is afterwards as it was."""
    trained = {p: p.requires_grad for p in model.parameters()}
    found: list[float | None] = []
    try:
        for p in trained:
            p.requires_grad_(p.is_floating_point())
        for example in examples:
            stop.check()
            found.append(_norm(model, example))
            advance(1)
    finally:
        for p, wanted in trained.items():
            p.requires_grad_(wanted)
            p.grad = None
    return found


def _norm(model: PreTrainedModel, example: Example) -> float | None:
    counted = example.answer_tokens - example.ends
    if not counted:
        return None
    batch = collate(model, [example])
    logits = head(model, hidden_states(model, batch))[:counted]
    loss = torch.nn.functional.cross_entropy(logits, batch.targets[:counted])
    weights = [p for p in model.parameters() if p.requires_grad]
    # A weight that a row does not reach has a gradient of zero.
    grads = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return float(torch.nn.utils.get_total_norm(grads))
