"""Task arithmetic (arXiv:2212.04089): a model trained on the forget set shows the direction to go back along."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from core.adapters import plain_parameters, scale
from core.edits.context import Context
from core.model import load
from core.spec.edits import TaskVector


@torch.no_grad()
def subtract(context: Context) -> None:
    """`theta <- theta_0 - a (theta - theta_0)`, theta as trained on the forget set, theta_0 the model as given."""
    term = context.spec.method
    assert isinstance(term, TaskVector)
    if context.spec.training.adapter:
        # Beside theta_0 stands theta - theta_0 alone.
        scale(context.model, -term.alpha)
        return
    trained = {name: p for name, p in context.model.named_parameters() if p.requires_grad}
    for name, original in originals(context.folder, context.model):
        if name in trained:
            theta = trained[name]
            theta.mul_(-term.alpha).add_(original.to(theta), alpha=1 + term.alpha)


def originals(folder: Path, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights of a folder by the model's own names, one in memory at a time where the files use those names."""
    ours = plain_parameters(model)
    opened: list[Any] = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
    holder = {name: file for file in opened for name in file.keys()}  # noqa: SIM118
    if all(name in holder for name in ours):
        for name in ours:
            yield name, holder[name].get_tensor(name)
        return
    # Some families rename weights between file and memory: only loading knows how.
    other, _ = load(folder, torch.device("cpu"))
    for name, p in other.named_parameters():
        yield name, p.detach()
