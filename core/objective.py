"""The objective of a request, `w_f F + w_r R`, on one micro-batch: forget and retain rows in one forward pass.

It is a module around the model, so that what shares a model between processes wraps the whole of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.device import on_device
from core.forward import head, hidden_states, states
from core.methods import METHODS, Need
from core.methods.retain import RETAIN_TERMS
from core.optim.curvature import sampled_label_nll
from core.reference import Reference
from core.spec.job import JobSpec
from core.spec.layers import resolved_layer
from core.tokens import Batch
from core.views import ReferenceView, View, in_chunks

T = TypeVar("T")
# The forget set's rows with another answer in place of the true one, for methods that compare the two.
ALTERNATIVE = "alternative"


@dataclass(frozen=True)
class Pass:
    """One forward pass: the rows of each set in it, their places among the set's rows of the step, and the batch, in
    which each set's answers stand together."""

    rows: Mapping[str, Sequence[int]]
    places: Mapping[str, Sequence[int]]
    lengths: Mapping[str, Sequence[int]]  # answer tokens of those rows
    batch: Batch
    weight: float = 1.0  # 0: only keeps step with other processes


def sets_of(spec: JobSpec) -> tuple[str, ...]:
    """The sets that a request's objective looks at: those with a loss."""
    losses = {"forget": METHODS[spec.method.name].loss, "retain": RETAIN_TERMS[spec.method.retain.name].loss}
    return tuple(name for name, loss in losses.items() if loss is not None)


class Objective(torch.nn.Module):
    """What is minimised. `sets` are those it looks at; `needs` what each must know beyond the current model."""

    def __init__(self, spec: JobSpec, model: PreTrainedModel, reference: Reference) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.reference = reference
        self.method = METHODS[spec.method.name]
        self.retain = RETAIN_TERMS[spec.method.retain.name]
        self.layer = resolved_layer(spec.method, model.config.get_text_config().num_hidden_layers)
        self.sets = sets_of(spec)
        self.needs: dict[str, frozenset[Need]] = {"forget": self.method.needs, "retain": self.retain.needs}
        if "alternative" in self.method.needs:
            self.needs[ALTERNATIVE] = self.method.needs & {"reference_sums"}
        # Set where processes share the model: each pass then runs the same layers, whatever rows are in it.
        self.in_step = False

    def forward(
        self,
        one: Pass,
        step_lengths: Mapping[str, Sequence[int]] | None = None,
        sampled: tuple[Tensor, int] | None = None,
    ) -> Tensor:
        """The unweighted losses (forget, retain) of the pass, each its share of the step's mean: (2,).

        With `sampled` instead the cross-entropy against labels drawn from the model itself: uniform random numbers,
        one an answer token, and the number of positions in the whole step.
        """
        if sampled is not None:
            uniform, positions = sampled
            last = hidden_states(self.model, one.batch)
            nll = in_chunks(sampled_label_nll, partial(head, self.model), self._vocabulary, last, uniform)
            return nll.sum() / positions
        assert step_lengths is not None
        losses = {name: torch.zeros((), device=self.model.device) for name in ("forget", "retain")}
        views = dict(self._views(one, step_lengths))
        alternative = views.pop(ALTERNATIVE, None)
        for name, view in views.items():
            if name == "forget":
                assert self.method.loss is not None
                losses[name] = self.method.loss(view.with_alternative(alternative), self.spec.method)
            else:
                assert self.retain.loss is not None
                losses[name] = self.retain.loss(view)
        return torch.stack([losses["forget"], losses["retain"]])

    def within(self, work: Callable[[], T]) -> T:
        """The work, as a pass of this module: what is sharded around the module is whole meanwhile."""
        return work()

    @property
    def _vocabulary(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    def logits(self, one: Pass) -> Tensor:
        """Logits of every answer token of the pass: (tokens, vocab)."""
        return head(self.model, hidden_states(self.model, one.batch))

    def _views(self, one: Pass, step_lengths: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, View]]:
        present = [name for name, rows in one.rows.items() if rows]
        needs = frozenset[Need]().union(*(self.needs[name] for name in present))
        inner = any("layer" in self.needs[name] for name in present)
        last = any("layer" not in self.needs[name] for name in present)
        everything = self.in_step and len({"layer" in self.needs[name] for name in self.sets}) > 1
        layer = self.layer if "layer" in needs else None
        made = states(self.model, one.batch, layer=layer, last=last or everything)
        assert inner == (made.layer is not None)
        if everything and made.layer is not None and made.last is not None:
            # Nothing is added, and yet the backward pass comes through the head and every layer.
            made = replace(made, layer=made.layer + 0.0 * head(self.model, made.last[:1]).sum())
        counts = [sum(one.lengths[name]) for name in present]
        # Splitting once, not slicing twice: the backward pass of a slice is a zero tensor as large as the whole.
        lines = (one.batch.targets, one.batch.row, made.last, made.layer)
        parts = [[None] * len(present) if line is None else line.split(counts) for line in lines]
        first_row = 0
        for name, targets, row, hidden, layer in zip(present, *parts, strict=True):
            assert targets is not None
            assert row is not None
            looks_inside = "layer" in self.needs[name]
            yield (
                name,
                View(
                    targets,
                    row - first_row,
                    one.lengths[name],
                    step_lengths[name],
                    hidden=None if looks_inside else hidden,
                    head=partial(head, self.model),
                    vocabulary=self._vocabulary,
                    layer=layer if looks_inside else None,
                    reference=self._reference(name, one.rows[name]),
                ),
            )
            first_row += len(one.rows[name])

    def _reference(self, name: str, rows: Sequence[int]) -> ReferenceView:
        needs, device = self.needs[name], self.model.device
        return ReferenceView(
            sums=self.reference.sums[name][on_device(rows, device)] if "reference_sums" in needs else None,
            hidden=self.reference.states(name, rows, device) if "reference_logits" in needs else None,
            head=self.reference.logits if "reference_logits" in needs else None,
            layer=self.reference.states(name, rows, device) if "reference_layer" in needs else None,
        )
