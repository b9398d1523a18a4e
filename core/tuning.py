"""Which weights train: all of them, those of chosen layers, those a method names, or adapters; and what is delivered.

A model comes out in the number format in which it came in; measured are the weights that came in and that come out.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import Linear, Module, Parameter
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core import adapters
from core import model as models
from core.anatomy import decoder_layers, down_projections
from core.checks import trained_layers
from core.data.inputs import Inputs
from core.edits.task_vector import originals
from core.errors import ModelError, Problem, SpecError
from core.precision import stored_dtype
from core.spec.job import JobSpec
from core.spec.layers import resolved_layer, steering_layers
from core.spec.models import LocalModel


def check(spec: JobSpec, folder: Path) -> None:
    """Refuse what this architecture does not have, before any weight is read. Raises SpecError and ModelError."""
    if spec.training.adapter is None and spec.method.name != "rmu":
        return
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            shape = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        # What a library says to a broken configuration is of any type.
        raise ModelError(f"{folder} cannot be loaded: {type(error).__name__}: {error}", param="model") from error
    _targets(shape, spec) if spec.training.adapter else _trained(shape, spec)


def prepare(model: PreTrainedModel, spec: JobSpec) -> PreTrainedModel:
    """The model, in place, such that exactly what the request wants trained requires a gradient; it computes the same.

    Dropout stays off, recomputed layers or not.
    """
    if spec.training.adapter:
        adapters.inject(model, spec.training.adapter, _targets(model, spec), spec.seed)
    else:
        trained = {id(p) for p in _trained(model, spec)}
        for p in model.parameters():
            p.requires_grad_(id(p) in trained)
    if spec.training.gradient_checkpointing:
        for layer in decoder_layers(model):
            layer.forward = _recomputed(layer.forward)
    return model


def hold(model: PreTrainedModel, spec: JobSpec, given: Path | None = None) -> None:
    """With an adapter and bf16, keep the weights beside it in bf16, for training: to be called when the model as given
    has been measured, and undone by `settle`.

    `given`: the folder of these weights, where nothing may be lost; then only weights that came in bf16 are so kept.
    """
    if spec.training.adapter is None or spec.training.precision != "bf16":
        return
    if given is not None and stored_dtype(given) != torch.bfloat16:
        return
    for p in model.parameters():
        p.data = p.data if p.requires_grad else p.data.bfloat16()


def start(spec: JobSpec, inputs: Inputs) -> Path:
    """The folder of the weights that training begins at: the model's, but for a method that begins at another."""
    base = getattr(spec.method, "base", None)
    return inputs.model(spec) if base is None else inputs.folder(base, "method.base")


def settles(spec: JobSpec) -> bool:
    """Whether `settle` leaves a model that its checkpoint could no longer be taken of."""
    return spec.training.adapter is not None and spec.training.adapter.deliver == "merged"


@torch.no_grad()
def settle(model: PreTrainedModel, spec: JobSpec, given: Path, *, sharded: bool = False) -> None:
    """Make the trained model, held in fp32, the one that is delivered: frozen weights as they were given, adapters
    merged where they are to be and weights then rounded, once, to the format of those given, so that what is measured
    of it holds of the files. Shards with adapters are settled when put together."""
    if adapters.injected(model):
        if sharded:
            return
        if any(p.dtype != torch.float32 for p in model.parameters()):
            _take_back(model, given)
        if not settles(spec):
            return
        adapters.merge(model)
    dtype = stored_dtype(given)
    if dtype != torch.float32:
        for p in model.parameters():
            p.copy_(p.to(dtype))


def deliver(model: PreTrainedModel, tokenizer: Any, folder: Path, spec: JobSpec, given: Path) -> None:
    """Write the model as the request wants it: whole, in the hub's layout, or its adapters alone."""
    settle(model, spec, given)
    if adapters.injected(model):
        # No path of this machine: the adapters may go anywhere.
        reference = spec.model
        base = Path(reference.path).resolve().name if isinstance(reference, LocalModel) else reference.called
        adapters.save(model, folder, base)
        tokenizer.save_pretrained(folder)
        return
    model.to(stored_dtype(given))  # type: ignore[arg-type]
    models.save(model, tokenizer, folder)


def _take_back(model: PreTrainedModel, given: Path) -> None:
    """Frozen weights that were rounded, as they were given, in fp32."""
    ours = adapters.plain_parameters(model)
    for name, tensor in originals(given, model):
        if name in ours:
            ours[name].data = tensor.to(ours[name].device, torch.float32)


def _layers(model: Module, spec: JobSpec) -> Collection[int]:
    """The decoder layers in which something trains."""
    depth = len(decoder_layers(model))
    chosen = trained_layers(spec.training, depth)
    if chosen is not None:
        return chosen
    layer = resolved_layer(spec.method, depth)
    return steering_layers(layer) if spec.method.name == "rmu" and layer is not None else range(depth)


def _trained(model: Module, spec: JobSpec) -> list[Parameter]:
    """The weights that train where there is no adapter: RMU's are down projections (arXiv:2403.03218)."""
    if spec.method.name == "rmu":
        return [p for _, p in down_projections(model, _layers(model, spec))]
    if spec.training.layers is None:
        return list(model.parameters())
    decoder = decoder_layers(model)
    return [p for i in _layers(model, spec) for p in decoder[i].parameters()]


def _targets(model: Module, spec: JobSpec) -> list[str]:
    """The linear modules beside which an adapter trains. Raises SpecError naming a target that is none."""
    assert spec.training.adapter
    linear = _linear(model, _layers(model, spec))
    if spec.method.name == "rmu":
        down = {name for name, _ in down_projections(model, _layers(model, spec))}
        linear = [name for name in linear if f"{name}.weight" in down]
    wanted = spec.training.adapter.targets
    if wanted == "all-linear":
        found = linear
    else:
        leaves = sorted({name.rsplit(".", 1)[-1] for name in linear})
        for i, target in enumerate(wanted):
            if not any(_is(name, target) for name in linear):
                allowed = f"No linear module that may train is called '{target}'. Allowed: {', '.join(leaves)}."
                raise SpecError([Problem(f"training.adapter.targets.{i}", target, allowed)])
        found = [name for name in linear if any(_is(name, target) for target in wanted)]
    if not found:
        message = "The model has no linear module to put an adapter beside. Allowed: null."
        raise SpecError([Problem("training.adapter", spec.training.adapter.name, message)])
    return found


def _linear(model: Module, layers: Collection[int]) -> list[str]:
    decoder = decoder_layers(model)
    inside = {id(m) for i in layers for m in decoder[i].modules() if isinstance(m, Linear | Conv1D)}
    return [name for name, module in model.named_modules() if id(module) in inside]


def _is(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The layer's forward pass, run again in the backward pass. transformers' own way needs training mode, which
    switches dropout on; here nothing is random, so that no random state has to be kept either."""

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


__all__: Sequence[str] = ["check", "deliver", "hold", "prepare", "settle", "settles", "start"]
