"""Forget terms that compare whole sequences through a sigmoid, and so have a bounded pull: NPO and SimNPO."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from core.spec.terms import Npo, SimNpo
from core.views import View


def npo(view: View, term: Npo) -> Tensor:
    """`-(2/b) E log sigmoid(b (S - S_ref))` (arXiv:2404.05868, eq. 3); at the reference it equals `(2/b) ln 2`."""
    assert view.reference_sums is not None
    return -2 / term.beta * logsigmoid(term.beta * (view.sums - view.reference_sums)).sum() / view.step_rows


def simnpo(view: View, term: SimNpo) -> Tensor:
    """`-(2/b) E log sigmoid(b S/|y| - d)` (arXiv:2410.07163)."""
    return -2 / term.beta * logsigmoid(term.beta * view.sums / view.lengths - term.delta).sum() / view.step_rows
