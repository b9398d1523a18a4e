"""The refresh of a second-order optimizer's curvature at the beginning of a step, over the rows of that step.

Before the step's own gradients are made, so that only one set of gradients is ever held.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from core.optim import curvature as estimates
from core.optim.curvature import Curvature
from core.precision import autocast

if TYPE_CHECKING:
    from core.train import Trainer

_STREAM = 2


def refresh(trainer: "Trainer", curvature: Curvature) -> bool:
    """Renew the estimate where that is due; whether it was."""
    if not curvature.due(trainer.step):
        return False
    trainer.optimizer.zero_grad(set_to_none=True)
    # Every process draws the same numbers, and uses those of its own rows.
    generator = torch.Generator(trainer.model.device)
    generator.manual_seed((trainer.spec.seed * 1_000_003 + trainer.step) * 8 + _STREAM)
    estimate = {"gauss_newton_bartlett": _bartlett, "hutchinson": _hutchinson}[curvature.estimate]
    estimate(trainer, curvature, generator)
    trainer.optimizer.zero_grad(set_to_none=True)
    return True


def _positions(trainer: "Trainer", curvature: Curvature) -> int:
    return sum(sum(trainer.feed.lengths(name, trainer.step)) for name in curvature.sets)


def _bartlett(trainer: "Trainer", curvature: Curvature, generator: torch.Generator) -> None:
    """The gradient against labels drawn from the model's own softmax, over all positions of the step, squared."""
    positions = _positions(trainer, curvature)
    # Drawn for the whole step, place by place: how it is cut into passes and processes changes no label, and a row that
    # a step has twice has labels of its own each time.
    drawn: dict[str, tuple[Tensor, ...]] = {}
    for name in curvature.sets:
        lengths = trainer.feed.lengths(name, trainer.step)
        drawn[name] = torch.rand(sum(lengths), generator=generator, device=trainer.model.device).split(lengths)
    for last, one in trainer.passes(curvature.sets):
        uniform = torch.cat([drawn[name][place] for name, places in one.places.items() for place in places])
        with trainer.processes.synchronised(trainer.loss_of, last):
            with autocast(trainer.model, trainer.spec.training.precision):
                loss = trainer.loss_of(one, sampled=(uniform, positions))
            (loss * (one.weight * trainer.processes.size)).backward()
    curvature.update(trainer.optimizer, positions)


def _hutchinson(trainer: "Trainer", curvature: Curvature, generator: torch.Generator) -> None:
    """`u * (H u)` for one normal `u`, H the Hessian of the mean token loss at the positions."""
    positions = _positions(trainer, curvature)
    u = estimates.probe(trainer.parameters, generator)
    product = [torch.zeros_like(p) for p in trainer.parameters]
    for _, one in trainer.passes(curvature.sets):
        with estimates.twice_differentiable():
            logits = trainer.objective.logits(one)
            loss = cross_entropy(logits, one.batch.targets, reduction="sum") * (one.weight / positions)
            for held, part in zip(product, estimates.hessian_vector(loss, trainer.parameters, u), strict=True):
                held += part
    for p, one_u, held in zip(trainer.parameters, u, product, strict=True):
        p.grad = one_u * trainer.processes.sum(held)
    curvature.update(trainer.optimizer, 1)
