"""Influence unlearning (arXiv:1703.04730, arXiv:2404.18239): one Newton step away from the forget set.

`theta <- theta + s (n_f / n_r) (G + d I)^-1 grad L_forget`, G the Gauss-Newton matrix of the retain loss, which is
positive semi-definite, so that conjugate gradients hold.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from core.data.batches import by_length
from core.edits.context import Context
from core.errors import Diverged
from core.forward import collate, head, hidden_states, packs
from core.optim.curvature import sampled_label_loss, twice_differentiable
from core.spec.edits import Influence
from core.tokens import Batch, Example

Vector = list[Tensor]


def influence(context: Context) -> None:
    """Take the step. Raises Diverged where it is not finite, and Stopped between passes."""
    term = context.spec.method
    assert isinstance(term, Influence)
    forget, retain = context.sets["forget"].examples, context.sets["retain"].examples
    solve = _SOLVERS[term.solver]
    context.emit("phase", phase="influence")
    pull = Rows(context, forget).gradient()
    step = solve(Rows(context, retain), pull, term, context)
    scale = term.scale * len(forget) / len(retain)
    parameters: list[Tensor] = list(trained(context.model))
    if not all(bool(torch.isfinite(x).all()) for x in step):
        raise Diverged(1, float("nan"))
    with torch.no_grad():
        torch._foreach_add_(parameters, step, alpha=scale)


def trained(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The parameters that the request lets change."""
    return [p for p in model.parameters() if p.requires_grad]


class Rows:
    """A set's rows and the sums over them, as many forward passes as memory asks for."""

    def __init__(self, context: Context, examples: Sequence[Example]) -> None:
        self.model, self.examples, self.stop = context.model, examples, context.stop
        self.budget = context.spec.training.micro_batch_tokens
        self.tokens = sum(e.answer_tokens for e in examples)
        self.parameters = trained(context.model)

    def batches(self) -> Iterator[Batch]:
        """The rows in batches of similar length."""
        for batch in by_length(self.examples, lambda e: len(e.ids), self.budget, packed=packs(self.model)):
            self.stop.check()
            yield collate(self.model, batch)

    def gradient(self) -> Vector:
        """The gradient of the mean token loss over all rows."""
        total = [torch.zeros_like(p) for p in self.parameters]
        for batch in self.batches():
            loss = cross_entropy(self._logits(batch), batch.targets, reduction="sum") / self.tokens
            torch._foreach_add_(total, _grad(loss, self.parameters))
        return total

    def product(self, v: Vector) -> Vector:
        """`G v`, G the Gauss-Newton matrix of the mean token loss: `J' (diag p - p p') J v`, averaged over tokens."""
        total = [torch.zeros_like(p) for p in self.parameters]
        for batch in self.batches():
            with twice_differentiable():
                logits = self._logits(batch)
                # J' u is linear in u, so its derivative along v with respect to u is J v.
                u = torch.zeros_like(logits, requires_grad=True)
                back = _grad(logits, self.parameters, u, create_graph=True)
                along = torch.stack([(g * x).sum() for g, x in zip(back, v, strict=True)]).sum()
                (forward,) = torch.autograd.grad(along, u)
                p = torch.softmax(logits.detach(), -1)
                bent = p * (forward - (p * forward).sum(-1, keepdim=True)) / self.tokens
                torch._foreach_add_(total, _grad(logits, self.parameters, bent))
        return total

    def diagonal(self, draws: int, seed: int) -> Vector:
        """An unbiased estimate of G's diagonal: squared sampled-label gradients (arXiv:2305.14342), a batch a draw.

        Each batch of b tokens gives `b g g` of its own mean loss, weighted with its share of all tokens.
        """
        generator = torch.Generator(self.model.device).manual_seed(seed)
        total = [torch.zeros_like(p) for p in self.parameters]
        for _ in range(draws):
            for batch in self.batches():
                here = len(batch.targets)
                uniform = torch.rand(here, generator=generator, device=self.model.device)
                g = _grad(sampled_label_loss(self._logits(batch), here, uniform), self.parameters)
                torch._foreach_addcmul_(total, g, g, value=here * here / self.tokens / draws)
        return total

    def _logits(self, batch: Batch) -> Tensor:
        return head(self.model, hidden_states(self.model, batch))


def _grad(
    of: Tensor, parameters: Sequence[Tensor], weight: Tensor | None = None, *, create_graph: bool = False
) -> Vector:
    found = torch.autograd.grad(of, list(parameters), weight, create_graph=create_graph, allow_unused=True)
    # An autograd call that allows unused parameters gives None for them, whatever its annotation says.
    gradients: Sequence[Tensor | None] = found
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]


def _by_diagonal(retain: Rows, pull: Vector, term: Influence, context: Context) -> Vector:
    """Divide by the damped diagonal of G."""
    diagonal = retain.diagonal(term.draws, context.spec.seed)
    torch._foreach_add_(diagonal, term.damping)
    torch._foreach_div_(pull, diagonal)
    return pull


def conjugate_gradient(retain: Rows, pull: Vector, term: Influence, context: Context) -> Vector:
    """Solve `(G + d I) x = g` to the relative residual asked for, or for as many iterations as allowed."""
    x = [torch.zeros_like(g) for g in pull]
    residual = pull
    direction = [g.clone() for g in pull]
    size = wanted = _dot(residual, residual)
    for i in range(term.iterations):
        bent = retain.product(direction)
        torch._foreach_add_(bent, direction, alpha=term.damping)
        length = float(size / _dot(direction, bent))
        torch._foreach_add_(x, direction, alpha=length)
        torch._foreach_add_(residual, bent, alpha=-length)
        previous, size = size, _dot(residual, residual)
        context.emit("progress", phase="influence", done=i + 1, total=term.iterations)
        if float(size) <= term.tolerance**2 * float(wanted):
            break
        torch._foreach_mul_(direction, float(size / previous))
        torch._foreach_add_(direction, residual)
    return x


def _dot(a: Vector, b: Vector) -> Tensor:
    return torch.stack([(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]).sum()


_SOLVERS = {"diagonal": _by_diagonal, "conjugate_gradient": conjugate_gradient}
