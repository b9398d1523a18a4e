"""Forget terms that are means of token losses: ascent on the true answer, weighted or not, and descent on another."""

import torch
from torch import Tensor

from core.spec.edits import TaskVector
from core.spec.terms import Ascent, RandomLabel, Refusal, SatImp, Wga
from core.views import View


def ascent(view: View, term: Ascent) -> Tensor:  # noqa: ARG001 -- one signature for every term
    """`-mean_t n_t` (arXiv:2210.01504). Unbounded below."""
    return -view.nll.sum() / view.step_tokens


def wga(view: View, term: Wga) -> Tensor:
    """`-mean_t p_t^b n_t`, the weights detached (arXiv:2502.19301); at b = 0 `ascent`."""
    weights = torch.exp(-term.beta * view.nll.detach())
    return -(weights * view.nll).sum() / view.step_tokens


def satimp(view: View, term: SatImp) -> Tensor:
    """`-mean_t p_t^b1 (1 - p_t)^b2 n_t`, the weights detached (arXiv:2505.11953); at b1 = b2 = 0 `ascent`."""
    n = view.nll.detach()
    # expm1: near certainty 1 - p is smaller than what is left of p in rounding.
    weights = torch.exp(-term.beta1 * n) * torch.expm1(-n).neg().pow(term.beta2)
    return -(weights * view.nll).sum() / view.step_tokens


def answered(view: View, term: Refusal | RandomLabel | TaskVector) -> Tensor:  # noqa: ARG001
    """`mean_t n_t` on whatever stands in the answer's place.

    A refusal (PO of arXiv:2401.06121, CL of 2404.18239), another record's answer (RL of 2404.18239), or the true one on
    the detour of a task vector (2212.04089).
    """
    return view.nll.sum() / view.step_tokens
