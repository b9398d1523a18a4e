"""Forget terms that look at whole predictions, not at the true token alone: (tokens, vocab) logits and nothing larger.

Each is a function of one token's logits, so that a view may run the head in chunks.
"""

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from core.spec.terms import CeRefForget, CeU, Ihl, LogitFlat, MaxEntropy, Undial
from core.views import View


def ce_ref_forget(view: View, term: CeRefForget) -> Tensor:  # noqa: ARG001 -- one signature for every term
    """`mean_t sum_v p_cur log p_ref` (KL of arXiv:2404.18239): the retain term `ce_ref` turned round."""
    return -view.per_token(ce_under_current).sum() / view.step_tokens


def undial(view: View, term: Undial) -> Tensor:
    """`mean_t CE(softmax(z_ref - b onehot(y)), z)` (arXiv:2402.10052)."""
    return view.per_token(partial(_undial, beta=term.beta)).sum() / view.step_tokens


def ce_u(view: View, term: CeU) -> Tensor:
    """`CE(softmax(z with z_y = -inf, detached), z)` (arXiv:2503.01224), mean over tokens but the first of each answer.

    The mean is over the tokens that count; a step without any has the loss 0.
    """
    counted = sum(max(0, length - term.skip) for length in view.step_lengths)
    losses = view.per_token(_ce_u)
    return torch.where(view.position >= term.skip, losses, 0).sum() / max(1, counted)


def max_entropy(view: View, term: MaxEntropy) -> Tensor:  # noqa: ARG001
    """`mean_t KL(uniform || cur)` (arXiv:2410.08109): 0 where all logits are equal."""
    return view.per_token(_max_entropy).sum() / view.step_tokens


def ihl(view: View, term: Ihl) -> Tensor:  # noqa: ARG001
    """`mean_t 1 + p_t - max_{v != y_t} p(v)` (arXiv:2408.06621): between 0 and 2."""
    return view.per_token(_ihl).sum() / view.step_tokens


def logit_flat(view: View, term: LogitFlat) -> Tensor:  # noqa: ARG001
    """`mean_t (max z - mean z)^2` (PDU of open-unlearning): 0 where all logits are equal."""
    return view.per_token(_logit_flat).sum() / view.step_tokens


def kl_from_reference(logits: Tensor, _targets: Tensor, reference: Tensor | None) -> Tensor:
    """KL(reference || current) of each token: (tokens,)."""
    assert reference is not None
    then = log_softmax(reference, dim=-1)
    p = then.exp()
    gap = then - log_softmax(logits, dim=-1)
    # Where both rule a token out, -inf less -inf is no number; it counts nothing.
    return gap.masked_fill_(p == 0, 0).mul_(p).sum(-1)


def ce_under_current(logits: Tensor, _targets: Tensor, reference: Tensor | None) -> Tensor:
    """`-sum_v p_cur log p_ref` of each token: (tokens,)."""
    assert reference is not None
    then = log_softmax(reference, dim=-1)
    # Finite, so that a token that both rule out counts nothing.
    then.clamp_(min=torch.finfo(then.dtype).min)
    return -(softmax(logits, dim=-1) * then).sum(-1)


def _cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    """`-sum_v q log p` of each token for targets q without gradient: (tokens,).

    As logsumexp less the mean logit, which keeps one tensor of the logits' size for the backward pass, not two.
    """
    return logits.logsumexp(-1) - logits.masked_fill(target == 0, 0).mul_(target).sum(-1)


def _undial(logits: Tensor, targets: Tensor, reference: Tensor | None, *, beta: float) -> Tensor:
    assert reference is not None
    lowered = reference.scatter_add(1, targets[:, None], reference.new_full((len(targets), 1), -beta))
    return _cross_entropy(softmax(lowered, dim=-1), logits)


def _ce_u(logits: Tensor, targets: Tensor, _reference: Tensor | None) -> Tensor:
    without = logits.detach().scatter(1, targets[:, None], -math.inf)
    return _cross_entropy(softmax(without, dim=-1), logits)


def _max_entropy(logits: Tensor, _targets: Tensor, _reference: Tensor | None) -> Tensor:
    return logits.logsumexp(-1) - logits.mean(-1) - math.log(logits.shape[-1])


def _ihl(logits: Tensor, targets: Tensor, _reference: Tensor | None) -> Tensor:
    best = logits.detach().topk(2, dim=-1).indices
    other = torch.where(best[:, 0] == targets, best[:, 1], best[:, 0])
    chosen = logits.gather(1, torch.stack([targets, other], dim=1))
    p, rival = (chosen - logits.logsumexp(-1, keepdim=True)).exp().unbind(1)
    return 1 + p - rival


def _logit_flat(logits: Tensor, _targets: Tensor, _reference: Tensor | None) -> Tensor:
    return (logits.max(-1).values - logits.mean(-1)).square()
