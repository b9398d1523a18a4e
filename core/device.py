"""Tensors on their way to the device that a run is on."""

from typing import Any

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; from pinned memory the copy does not wait for what a GPU is doing."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def on_device(numbers: Any, device: torch.device) -> Tensor:
    """Integers, in a sequence or an array, as an int64 tensor on the device."""
    return sent(torch.as_tensor(numbers, dtype=torch.long), device)
