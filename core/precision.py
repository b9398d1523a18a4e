"""Number formats: fp32 throughout, or weights in fp32 and matrix products in bf16; and that of a folder's weights."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

Precision = Literal["fp32", "bf16"]

# safetensors' names of the formats of 16 bits; every other model is delivered in fp32.
_HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}


def autocast(model: PreTrainedModel, precision: Precision) -> AbstractContextManager[object]:
    """Within the block, the model's matrix products in the given precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(model.device.type, torch.bfloat16)


@contextmanager
def computing(model: PreTrainedModel, precision: Precision) -> Iterator[None]:
    """Within the block, as `autocast`, for a model that is only looked at: its matrices are rounded once, not in each
    pass, which takes half as much memory again."""
    if precision == "fp32":
        yield
        return
    held = {
        p: p.data
        for p in model.parameters()
        if p.dtype == torch.float32 and p.ndim > 1 and not hasattr(p, "full_tensor")
    }
    try:
        for p, data in held.items():
            p.data = data.bfloat16()
        with autocast(model, precision):
            yield
    finally:
        for p, data in held.items():
            p.data = data


def stored_dtype(folder: Path) -> torch.dtype:
    """The format of most numbers in a folder's safetensors: bf16, fp16, and fp32 for any other."""
    numbers: Counter[str] = Counter()
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                numbers[entry["dtype"]] += (end - begin) // (2 if entry["dtype"] in _HALVES else 4)
    return _HALVES.get(max(numbers, key=lambda kind: numbers[kind], default="F32"), torch.float32)
