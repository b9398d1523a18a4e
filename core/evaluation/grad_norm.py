"""The norm of the gradient of a row's loss (arXiv:2402.17012): what a model has learnt by heart pulls at it no more.

One row at a time: in a batch of several only the sum of their gradients is there.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import Parameter
from transformers import PreTrainedModel

from core.adapters import plain_parameters
from core.events import StopFlag
from core.forward import collate, head, hidden_states
from core.tokens import Example


def grad_norms(
    model: PreTrainedModel, examples: Sequence[Example], stop: StopFlag, advance: Callable[[int], None] = lambda _: None
) -> list[float | None]:
    """Euclidean norm, over all weights, of the gradient of each row's token-mean loss, end of sequence not counted;
    None for a row of nothing else. Adapters count as merged: it is the weights beside them whose gradient is taken.

    The model is afterwards as it was. Raises Stopped.
    """
    own = [p for p in plain_parameters(model).values() if p.is_floating_point()]
    trains = [p.requires_grad for p in own]
    found: list[float | None] = []
    try:
        for p in own:
            p.requires_grad_(True)
        for example in examples:
            stop.check()
            found.append(_norm(model, own, example))
            advance(1)
    finally:
        for p, before in zip(own, trains, strict=True):
            p.requires_grad_(before)
    return found


def _norm(model: PreTrainedModel, own: Sequence[Parameter], example: Example) -> float | None:
    counted = example.answer_tokens - example.ends
    if not counted:
        return None
    batch = collate(model, [example])
    logits = head(model, hidden_states(model, batch))[:counted]
    loss = torch.nn.functional.cross_entropy(logits, batch.targets[:counted])
    # A weight that a row does not reach has a gradient of zero.
    grads = torch.autograd.grad(loss, own, allow_unused=True, materialize_grads=True)
    return float(torch.nn.utils.get_total_norm(grads))
