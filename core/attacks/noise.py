"""Gaussian noise on every weight: knowledge that a few last bits hide comes back when they are shaken."""

import hashlib

import torch
from torch import Tensor

from core.attacks.target import Target, asked
from core.data.encode import EncodedSet
from core.spec.attacks import Noise


@torch.no_grad()
def noise(spec: Noise, target: Target) -> EncodedSet:
    """`w <- w + sigma std(w) z`, z standard normal, a function of the seed and the tensor's name. Raises Stopped."""
    for name, weight in target.model.named_parameters():
        target.stop.check()
        if weight.is_floating_point():
            # Of a tensor of one number too: 0.
            spread = weight.float().std(correction=0)
            z = drawn(weight.shape, target.seed, name).to(weight.device)
            weight.copy_(weight.float().addcmul_(z, spread, value=spec.sigma))
    return asked(target.forget)


def drawn(shape: torch.Size, seed: int, name: str) -> Tensor:
    """Standard normal numbers of this shape, drawn in main memory: the same whatever device the model is on."""
    number = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]
    return torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(number, "little")))
