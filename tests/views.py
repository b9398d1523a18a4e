"""Views of random logits, for laws that follow from the definition of a loss alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core.views import ReferenceView, View

VOCAB = 11


def same(hidden: Tensor) -> Tensor:
    """A head that makes logits of hidden states by leaving them as they are, in double precision too."""
    return hidden


def view_of(
    logits: Tensor,
    targets: Tensor,
    lengths: Sequence[int],
    *,
    step_lengths: Sequence[int] | None = None,
    reference_sums: Tensor | None = None,
    reference_logits: Tensor | None = None,
    **more: Any,
) -> View:
    """A view of these answer tokens, rows of the given lengths; by default they are all rows of the step."""
    return View(
        targets,
        torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        lengths,
        lengths if step_lengths is None else step_lengths,
        hidden=logits,
        head=same,
        vocabulary=logits.shape[-1],
        reference=ReferenceView(reference_sums, reference_logits, same),
        **more,
    )


def random_view(lengths: list[int], seed: int, reference: str | None = None, spread: float = 3, **more: Any) -> View:
    """All rows of a step; `reference` is its S_ref: `own` (the model has not moved), `other`, or `zero`."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    logits = spread * torch.randn(tokens, VOCAB, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, VOCAB, (tokens,), generator=generator)
    then = {
        "own": logits.clone(),
        "other": logits + torch.randn(tokens, VOCAB, generator=generator, dtype=torch.float64),
    }
    known: dict[str, Any] = {}
    if reference == "zero":
        known = {"reference_sums": torch.zeros(len(lengths), dtype=torch.float64)}
    elif reference:
        sums = view_of(then[reference], targets, lengths).sums
        known = {"reference_sums": sums, "reference_logits": then[reference]}
    return view_of(logits.requires_grad_(), targets, lengths, **known, **more)


def gradient(loss: Tensor, view: View) -> Tensor:
    assert view.hidden is not None
    return torch.autograd.grad(loss, view.hidden, retain_graph=True)[0]
