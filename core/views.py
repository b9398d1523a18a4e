"""View: what an objective may see of one set in one forward pass. Nothing else reaches a loss."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """Answer tokens of one set in one micro-batch.

    `step_tokens` and `step_rows` are those of the whole optimizer step (T and N of the formulas), so that summing the
    losses of the micro-batches gives a mean over the step, not a mean of means.
    """

    logits: Tensor  # (tokens, vocab), fp32
    targets: Tensor  # (tokens,)
    row: Tensor  # (tokens,) index of the sequence, counted from 0 within this view
    rows: int
    step_tokens: int
    step_rows: int
    reference_sums: Tensor | None = None  # (rows,) S_ref: sequence NLL under the reference
    reference_logits: Tensor | None = None  # (tokens, vocab)

    @cached_property
    def nll(self) -> Tensor:
        """-log p of each answer token: (tokens,)."""
        return torch.nn.functional.cross_entropy(self.logits, self.targets, reduction="none")

    @cached_property
    def lengths(self) -> Tensor:
        """Answer tokens of each sequence: (rows,)."""
        return torch.bincount(self.row, minlength=self.rows)

    @cached_property
    def sums(self) -> Tensor:
        """S, the NLL of each whole sequence: (rows,)."""
        return self.nll.new_zeros(self.rows).index_add(0, self.row, self.nll)
