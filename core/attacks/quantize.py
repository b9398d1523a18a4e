"""Weights rounded to 8 or 4 bits (arXiv:2410.16454): an update smaller than a step of the grid may be rounded away.

Round to nearest and symmetric, as is done without data; the rounded weights are computed with as ordinary numbers.
"""

import torch
from torch import Tensor
from torch.nn import Linear, Parameter
from torch.nn.functional import pad
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.anatomy import decoder_layers
from core.attacks.target import Target, asked
from core.data.encode import EncodedSet
from core.spec.attacks import Quantize

# Output channels rounded at one time: in double precision a whole matrix could be larger than what is left of memory.
_AT_ONCE = 1024


@torch.no_grad()
def quantize(spec: Quantize, target: Target) -> EncodedSet:
    """Put the rounded weights in place of the linear layers' own. Raises Stopped."""
    for weight, transposed in _linear(target.model):
        target.stop.check()
        for matrix in weight.data if weight.ndim == 3 else [weight.data]:
            for channels in (matrix.t() if transposed else matrix).split(_AT_ONCE):
                channels.copy_(rounded(channels, spec.bits, spec.group if spec.bits == 4 else None))
    return asked(target.forget)


def rounded(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """The nearest multiples of a scale, `max|w| / (2^(bits-1) - 1)` over each output channel, or over each `group` of
    its inputs, of which the last may be shorter.

    weight: (outputs, inputs), and so the result. The lowest of the 2^bits levels is never reached.
    """
    inputs = weight.shape[1]
    width = min(group or inputs, inputs)
    # In double precision, so that the largest number of a group stays what it is and rounding again changes nothing.
    w = pad(weight.double(), (0, -inputs % width)).unflatten(1, (-1, width))
    scale = w.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    levels = (w / scale.where(scale > 0, 1.0)).round()
    nearest: Tensor = (levels * scale).flatten(1)[:, :inputs]
    return nearest.to(weight.dtype)


def linear_weights(model: PreTrainedModel) -> list[Parameter]:
    """The weights of linear layers within the decoder layers: no embedding, norm or head.

    Adapters that are delivered beside the model are not among them: they are served as they are, on rounded weights.
    """
    return [weight for weight, _ in _linear(model)]


def _linear(model: PreTrainedModel) -> list[tuple[Parameter, bool]]:
    """Each weight once, and whether its outputs come last."""
    found: dict[int, tuple[Parameter, bool]] = {}
    for name, module in decoder_layers(model).named_modules():
        if ".lora_A." in f".{name}." or ".lora_B." in f".{name}.":
            continue
        # Mixtral and its like keep the matrices of all experts in one tensor: (experts, outputs, inputs).
        dimensions = 2 if isinstance(module, Linear | Conv1D) else 0 if isinstance(module, _ConvNd) else 3
        transposed = isinstance(module, Conv1D) or bool(getattr(module, "is_transposed", False))
        for weight in module.parameters(recurse=False):
            if weight.ndim == dimensions:
                found.setdefault(id(weight), (weight, transposed))
    return list(found.values())
