"""Attacks take the delivered model itself, since a second one may not fit beside it, and give it back bit for bit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import Parameter
from transformers import PreTrainedModel


def every_weight(model: PreTrainedModel) -> list[Parameter]:
    """All weights that are no integers, those that several modules share once."""
    return [p for p in model.parameters() if p.is_floating_point()]


def no_weight(_: PreTrainedModel) -> list[Parameter]:
    """None of them."""
    return []


@contextmanager
def untouched(model: PreTrainedModel, weights: Sequence[Parameter] = ()) -> Iterator[None]:
    """Within the block these weights may change, and every buffer, flag and mode of the model; after it, however it
    ends, all are as they were and no gradient is left. The weights are kept once, in main memory."""
    kept = [(weight, weight.detach().to("cpu", copy=True)) for weight in weights]
    # Some rotary embeddings put other buffers in place of theirs as rows grow longer.
    buffers = [(module, name, b) for module in model.modules() for name, b in module.named_buffers(recurse=False)]
    held = [buffer.detach().to("cpu", copy=True) for _, _, buffer in buffers]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    attention = model.config._attn_implementation
    try:
        yield
    finally:
        for p, trains in flags:
            p.grad = None
            p.requires_grad_(trains)
        with torch.no_grad():
            for weight, was in kept:
                weight.data.copy_(was)
            for (module, name, buffer), was in zip(buffers, held, strict=True):
                buffer.data.copy_(was)
                setattr(module, name, buffer)
        for module, training in modes:
            module.training = training
        if model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)
