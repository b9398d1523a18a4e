"""Terms that look at the hidden states of one layer: RMU's on the forget set, and its counterpart on the retain set."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from core.spec.terms import Rmu
from core.views import View


def rmu(view: View, term: Rmu) -> Tensor:
    """`MSE(h_l, c u)` over tokens and hidden dimensions, u a fixed random unit vector (arXiv:2403.03218)."""
    assert view.layer is not None
    return _mean_square(view.layer - term.c * direction(term.direction, view.layer.shape[-1], view.layer.device), view)


def hidden(view: View) -> Tensor:
    """`MSE(h_l, h_l_ref)` over tokens and hidden dimensions (arXiv:2403.03218)."""
    assert view.layer is not None
    assert view.reference.layer is not None
    return _mean_square(view.layer - view.reference.layer, view)


@lru_cache(maxsize=4)
def direction(seed: int, size: int, device: torch.device) -> Tensor:
    """The unit vector of a seed and a hidden size, normal and so of no preferred direction: (size,), fp32."""
    drawn = np.random.default_rng((seed, size)).standard_normal(size)
    return torch.tensor(drawn / np.linalg.norm(drawn), dtype=torch.float32, device=device)


def _mean_square(gap: Tensor, view: View) -> Tensor:
    exact = gap.to(torch.promote_types(gap.dtype, torch.float32))
    return exact.square().sum() / (view.step_tokens * gap.shape[-1])
