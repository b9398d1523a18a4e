"""Low-rank adapters (arXiv:2106.09685) in a model: peft's layers put into it in place, taken out again or merged.

The weights beside them are held once: with its adapters off the model is the one that was given.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module, Parameter
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.spec.training import LoraAdapter

_NAME = "default"


def inject(model: PreTrainedModel, adapter: LoraAdapter, targets: Sequence[str], seed: int) -> None:
    """Put an adapter beside each of these linear modules; from now on nothing else trains.

    Adapters are in fp32, A uniform as a linear layer's weight and a function of the seed alone, B = 0.
    """
    # Seconds of import that only such a run needs.
    from peft import LoraConfig, inject_adapter_in_model

    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in targets)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha,  # type: ignore[arg-type]
        target_modules=list(targets),
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        inject_adapter_in_model(config, model, _NAME)
    generator = torch.Generator().manual_seed(seed)
    for layer in _layers(model):
        a, b = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
        bound = 1 / math.sqrt(a.shape[1])
        drawn = torch.empty(a.shape).uniform_(-bound, bound, generator=generator)
        a.data, b.data = drawn.to(a.device), b.data.float().zero_()
    model.eval()


def injected(model: Module) -> bool:
    """Whether there are adapters in the model."""
    return any(True for _ in _layers(model))


@contextmanager
def adapter_off(model: Module) -> Iterator[None]:
    """Within the block the model computes what it did before anything was trained. Not to be left by a gradient."""
    layers = list(_layers(model))
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def scale(model: Module, factor: float) -> None:
    """Multiply what every adapter adds to its module."""
    for layer in _layers(model):
        layer.lora_B[_NAME].weight.mul_(factor)


def plain_parameters(model: Module) -> dict[str, Parameter]:
    """The model's own weights, without adapters, by the names that they have in its files."""
    return {
        name.replace(".base_layer.", "."): p
        for name, p in model.named_parameters()
        if ".lora_A." not in name and ".lora_B." not in name
    }


@torch.no_grad()
def merge(model: Module) -> None:
    """Add what each adapter adds, in fp32, in which the sums stay, and put the module itself back in its place."""
    for name, module in list(model.named_modules()):
        if not _adapted(module):
            continue
        base: Any = module.get_base_layer()
        base.weight.data = base.weight.float() + module.get_delta_weight(_NAME).float()
        model.set_submodule(name, base)
    # transformers would look for adapters of its own making.
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.requires_grad_(True)


def save(model: PreTrainedModel, folder: Path, base: str) -> None:
    """Write the adapters alone, as peft loads them onto the model that `base` names."""
    config = model.peft_config[_NAME]
    config.base_model_name_or_path, config.inference_mode = base, True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tensors = {_published(name): p for name, p in _own(model.named_parameters())}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def _published(name: str) -> str:
    return "base_model.model." + name.replace(f".{_NAME}.", ".")


def _own(parameters: Iterable[tuple[str, Parameter]]) -> Iterator[tuple[str, Tensor]]:
    for name, p in parameters:
        if ".lora_A." in name or ".lora_B." in name:
            yield name, p.detach().cpu().contiguous()


def _layers(model: Module) -> Iterator[Any]:
    return (module for module in model.modules() if _adapted(module))


def _adapted(module: Module) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")
