"""One model cut up between processes with FSDP2 (arXiv:2304.11277): decoder layer by decoder layer, the rest with the
objective around it. Tensors that go to disk or come from there are whole, so that a file knows nothing of shards.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from core.anatomy import decoder_layers

T = TypeVar("T")


def shard(objective: Any, device: torch.device) -> None:
    """Cut the model of an objective up over all processes; its parameters become DTensors on the device.

    A layer is whole only while it runs. Embeddings and head stay whole from a pass's beginning to its end.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    layers: list[Any] = [fully_shard(layer, mesh=mesh) for layer in decoder_layers(objective.model)]
    fully_shard(objective, mesh=mesh)
    register_fsdp_forward_method(objective, "within")

    def once() -> None:
        # Whole parameters are kept as tensors without memory; those of a first time in inference mode could not be
        # trained with.
        for layer in layers:
            layer.unshard()
            layer.reshard()

    within(objective, once)
    # What a process runs of the model the others must run too, or each would wait for the other's layers.
    objective.in_step = True


def within(objective: Any, work: Callable[[], T]) -> T:
    """The work as if it were the objective's forward pass: embeddings and head are whole, layers become so in turn."""
    caught: list[BaseException] = []

    def careful() -> T | None:
        # An exception must not keep the pass from its end, where what is whole is put away.
        try:
            return work()
        except Exception as error:
            caught.append(error)
            return None

    made = objective.within(careful)
    objective.reshard()
    if caught:
        raise caught[0]
    return made  # type: ignore[no-any-return]


def whole(tensor: Any) -> Tensor:
    """All of a DTensor, which every process must ask for; a plain tensor as it is."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[no-any-return]


def spread(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor that every process has, cut up as `like` is where that is a DTensor; on its device."""
    if not hasattr(like, "full_tensor"):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    on_device = tensor.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def put_together(model: torch.nn.Module, *, keep: bool) -> None:
    """Replace every shard by the whole parameter in main memory, for saving: where `keep`, though all must call."""
    from torch.distributed.fsdp import FSDPModule

    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is None or not hasattr(p, "full_tensor"):
                continue
            if id(p) not in made:
                full = whole(p)
                made[id(p)] = torch.nn.Parameter(full.cpu() if keep else full.new_empty(0), p.requires_grad)
            if keep:
                module._parameters[name] = made[id(p)]
        if keep and isinstance(module, FSDPModule):
            # A class of its own, made when the layer was cut up, which knows of shards only.
            module.__class__ = next(base for base in type(module).__bases__ if base is not FSDPModule)
