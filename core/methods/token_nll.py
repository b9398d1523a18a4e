"""Forget terms that are means of token losses: ascent on the true answer, descent on a refusal in its place."""

from torch import Tensor

from core.spec.terms import Ascent, Refusal
from core.views import View


def ascent(view: View, term: Ascent) -> Tensor:  # noqa: ARG001 -- one signature for every term
    """`-mean_t n_t` (arXiv:2210.01504). Unbounded below."""
    return -view.nll.sum() / view.step_tokens


def refusal(view: View, term: Refusal) -> Tensor:  # noqa: ARG001
    """`mean_t n_t` on a refusal put in place of the answer (PO of arXiv:2401.06121, CL of 2404.18239)."""
    return view.nll.sum() / view.step_tokens
