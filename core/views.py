"""View: what an objective may see of one set in one forward pass. Nothing else reaches a loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from core.device import on_device

# Logits held at one time, in numbers: where answer tokens times vocabulary is more, the head is run in chunks, and
# again in the backward pass.
LOGITS_AT_ONCE = 1 << 26

# From (tokens, vocab) logits, (tokens,) targets and, where the method needs them, (tokens, vocab) reference logits, to
# one number a token.
PerToken = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def in_chunks(
    of: Callable[..., Tensor], head: Callable[[Tensor], Tensor], vocabulary: int, hidden: Tensor, *beside: Tensor
) -> Tensor:
    """`of(logits, *beside)`, one number a token, with the logits of at most LOGITS_AT_ONCE numbers held together.

    hidden: (tokens, hidden), made logits by `head`; beside: (tokens, ...) each.
    """

    def one(part: Tensor, *others: Tensor) -> Tensor:
        return of(head(part), *others)

    at_once = max(1, LOGITS_AT_ONCE // vocabulary)
    if len(hidden) <= at_once:
        return one(hidden, *beside)
    parts = zip(*(line.split(at_once) for line in (hidden, *beside)), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([one(*part) for part in parts])
    return torch.cat([checkpoint(one, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


@dataclass(frozen=True)
class ReferenceView:
    """What a view holds of the frozen original model; None where the objective does not need it."""

    sums: Tensor | None = None  # (rows,) S_ref: sequence NLL
    hidden: Tensor | None = None  # (tokens, hidden) last hidden states
    head: Callable[[Tensor], Tensor] | None = None
    layer: Tensor | None = None  # (tokens, hidden) of the layer the objective looks at


@dataclass(frozen=True)
class View:
    """Answer tokens of one set in one micro-batch.

    `step_lengths` are the answer lengths of the set's rows in the whole optimizer step, so that summing the losses of
    micro-batches (and processes) gives a mean over the step, not a mean of means. `hidden` are last hidden states,
    which `head` makes logits of; an objective that looks at an inner layer sees `layer` instead.
    """

    targets: Tensor  # (tokens,)
    row: Tensor  # (tokens,) index of the sequence, counted from 0 within this view
    row_lengths: Sequence[int]
    step_lengths: Sequence[int]
    hidden: Tensor | None = None  # (tokens, hidden)
    head: Callable[[Tensor], Tensor] | None = None
    vocabulary: int = 1  # logits of one token
    layer: Tensor | None = None  # (tokens, hidden)
    reference: ReferenceView = ReferenceView()
    alternative: "View | None" = None  # the same rows with another answer

    @property
    def rows(self) -> int:
        """Sequences in this view."""
        return len(self.row_lengths)

    @property
    def step_tokens(self) -> int:
        """T: answer tokens of the whole optimizer step."""
        return sum(self.step_lengths)

    @property
    def step_rows(self) -> int:
        """N: sequences of the whole optimizer step."""
        return len(self.step_lengths)

    @cached_property
    def lengths(self) -> Tensor:
        """|y|, answer tokens of each sequence: (rows,)."""
        return on_device(self.row_lengths, self.row.device)

    @cached_property
    def position(self) -> Tensor:
        """Where in its answer each token stands, from 0: (tokens,)."""
        begins = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.row), device=self.row.device) - begins[self.row]

    def with_alternative(self, alternative: "View | None") -> "View":
        """This view, with that of the other answers beside it."""
        return self if alternative is None else replace(self, alternative=alternative)

    def per_token(self, of: PerToken) -> Tensor:
        """One number a token of its logits, target and reference logits: (tokens,), fp32.

        The logits of all tokens are never held together where they are many.
        """
        assert self.hidden is not None
        assert self.head is not None

        def finished(logits: Tensor, targets: Tensor, reference: Tensor | None = None) -> Tensor:
            then = None
            if reference is not None and self.reference.head is not None:
                with torch.no_grad():
                    then = self.reference.head(reference)
            return of(logits, targets, then)

        beside = [] if self.reference.hidden is None else [self.reference.hidden]
        return in_chunks(finished, self.head, self.vocabulary, self.hidden, self.targets, *beside)

    @cached_property
    def nll(self) -> Tensor:
        """n_t, -log p of each answer token: (tokens,)."""
        return self.per_token(lambda logits, targets, _: cross_entropy(logits, targets, reduction="none"))

    @cached_property
    def sums(self) -> Tensor:
        """S, the NLL of each whole sequence: (rows,)."""
        return self.nll.new_zeros(self.rows).index_add(0, self.row, self.nll)
