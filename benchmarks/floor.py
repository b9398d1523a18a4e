"""The floor of a step: its matrix products alone, on tensors of their shapes, for real tokens only.

Every linear layer forward and twice backward, attention's products row by row, and the head on answer tokens. What a
step takes beyond this is norms, activations, softmax, the optimizer and overhead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines import Case, Row, rmu_layer
from benchmarks.rows import Size


@dataclass(frozen=True)
class Linear:
    """`tokens` rows through a weight of (outputs, inputs); `key` tells the weight from those of the same shape."""

    key: str
    tokens: int
    outputs: int
    inputs: int
    to_input: bool = True  # a gradient goes back to its input
    to_weight: bool = True

    @property
    def flop(self) -> int:
        """Floating-point operations of its products."""
        return 2 * self.tokens * self.outputs * self.inputs * (1 + self.to_input + self.to_weight)


@dataclass(frozen=True)
class Attention:
    """Scores and weighted sum of one row, all heads; causality is not counted."""

    length: int
    heads: int
    size: int
    backward: bool = True

    @property
    def flop(self) -> int:
        """Floating-point operations of its two products, and of the four backward."""
        return 2 * self.heads * self.length**2 * self.size * (6 if self.backward else 2)


Product = Linear | Attention


def products(size: Size, case: Case, sets: Mapping[str, Sequence[Row]]) -> list[Product]:
    """The matrix products of a step, in the order of the forward pass."""
    lengths = [len(r.ids) for rows in sets.values() for r in rows]
    if case.forget == "rmu":
        last = rmu_layer(size.layers)
        return [p for i in range(last + 1) for p in _layer(size, i, lengths, trained_from=last - 2)]
    whole = [p for i in range(size.layers) for p in _layer(size, i, lengths)]
    answers = {name: sum(len(r.ids) - r.start for r in rows) for name, rows in sets.items()}
    if case.retain == "kl":
        whole.append(Linear("reference", answers["retain"], size.vocab, size.hidden, to_input=False, to_weight=False))
    return [*whole, Linear("head", sum(answers.values()), size.vocab, size.hidden)]


def _layer(size: Size, layer: int, lengths: Sequence[int], trained_from: int | None = None) -> list[Product]:
    """One layer; with `trained_from`, only `mlp.down_proj` from that layer on is trained, and nothing before it."""
    tokens, h, m = sum(lengths), size.hidden, size.intermediate
    everything = trained_from is None
    back = trained_from is None or layer > trained_from
    down = trained_from is None or layer >= trained_from
    shapes = [("q", h, h), ("k", h, h), ("v", h, h), ("o", h, h), ("gate", m, h), ("up", m, h)]
    linears: list[Product] = [Linear(f"{layer}.{key}", tokens, o, i, back, everything) for key, o, i in shapes]
    attention: list[Product] = [Attention(n, size.heads, h // size.heads, back) for n in lengths]
    return [*linears[:3], *attention, *linears[3:], Linear(f"{layer}.down", tokens, h, m, back, down)]


class Floor:
    """A step that is nothing but its matrix products. Weights and their gradients are tensors of their own, as in a
    model; activations of one width share theirs."""

    def __init__(self, size: Size, case: Case, rows_of: Callable[[int], Mapping[str, Sequence[Row]]]) -> None:
        self._size, self._case, self._rows_of = size, case, rows_of
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, step: int) -> tuple[float, float]:
        """Run the products of the step; returns how many billion operations they are, and 0."""
        wanted = products(self._size, self._case, self._rows_of(step))
        for p in wanted:
            self._linear(p, True) if isinstance(p, Linear) else self._attention(p, True)
        for p in reversed(wanted):
            self._linear(p, False) if isinstance(p, Linear) else self._attention(p, False)
        return sum(p.flop for p in wanted) / 1e9, 0.0

    def _linear(self, p: Linear, forward: bool) -> None:
        weight = self._tensor(f"weight {p.key}", p.outputs, p.inputs)
        x = self._tensor(f"x {p.inputs}", p.tokens, p.inputs)
        y = self._tensor(f"y {p.outputs}", p.tokens, p.outputs)
        if forward:
            torch.mm(x, weight.T, out=self._tensor(f"forward {p.outputs}", p.tokens, p.outputs))
            return
        if p.to_input:
            torch.mm(y, weight, out=self._tensor(f"backward {p.inputs}", p.tokens, p.inputs))
        if p.to_weight:
            torch.mm(y.T, x, out=self._tensor(f"gradient {p.key}", p.outputs, p.inputs))

    def _attention(self, p: Attention, forward: bool) -> None:
        values = self._tensor("values", p.heads, p.length, p.size)
        scores = self._tensor("scores", p.heads, p.length, p.length)
        to_scores = self._tensor("to scores", p.heads, p.length, p.length)
        to_values = self._tensor("to values", p.heads, p.length, p.size)
        for _ in range(1 if forward else 2 if p.backward else 0):
            torch.bmm(values, values.transpose(1, 2), out=to_scores)
            torch.bmm(scores, values, out=to_values)

    def _tensor(self, name: str, *shape: int) -> Tensor:
        """A tensor kept from step to step, so that nothing but the products takes time."""
        numbers = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.numel() < numbers:
            # Room for a step of longer rows; a weight's size never changes.
            kept = torch.randn(numbers if name.startswith(("weight", "gradient")) else 2 * numbers)
            self._kept[name] = kept
        return kept[:numbers].view(shape)
