"""Forget terms that compare whole sequences through a sigmoid, and so have a bounded pull: NPO, SimNPO and DPO."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from core.spec.terms import Dpo, Npo, SimNpo
from core.views import View


def npo(view: View, term: Npo) -> Tensor:
    """`-(2/b) E log sigmoid(b (S - S_ref))` (arXiv:2404.05868, eq. 3); at the reference it equals `(2/b) ln 2`.

    With `normalise` "tokens" both sums are divided by |y|.
    """
    above = _above_reference(view)
    if term.normalise == "tokens":
        above = above / view.lengths
    return _sigmoid_loss(above, term.beta, view)


def simnpo(view: View, term: SimNpo) -> Tensor:
    """`-(2/b) E log sigmoid(b S/|y| - d)` (arXiv:2410.07163)."""
    return _sigmoid_loss(view.sums / view.lengths, term.beta, view, term.delta)


def dpo(view: View, term: Dpo) -> Tensor:
    """`-(2/b) E log sigmoid(b [(S_l - S_l_ref) - (S_w - S_w_ref)])`, l the true answer, w the other (arXiv:2305.18290).

    With 2/b in front as in NPO, which it equals where the other answer's likelihood has not moved.
    """
    assert view.alternative is not None
    return _sigmoid_loss(_above_reference(view) - _above_reference(view.alternative), term.beta, view)


def _above_reference(view: View) -> Tensor:
    assert view.reference.sums is not None
    return view.sums - view.reference.sums


def _sigmoid_loss(margin: Tensor, beta: float, view: View, delta: float = 0.0) -> Tensor:
    return -2 / beta * logsigmoid(beta * margin - delta).sum() / view.step_rows
