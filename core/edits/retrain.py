"""Retraining: the base model, as it was before it met the forget set, fine-tuned on the retain set alone.

The gold standard that approximate unlearning is compared with.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from core.adapters import plain_parameters
from core.edits.context import Context
from core.edits.task_vector import originals
from core.errors import ModelError
from core.model import check_folder
from core.spec.edits import Retrain


def check_base(base: Path, model: Path) -> None:
    """What is seen of a base without reading a weight: a model folder, its weights of the shapes of the model's.

    Raises ModelError naming `method.base`.
    """
    if base == model:
        return
    try:
        check_folder(base)
    except ModelError as error:
        raise ModelError(f"method.base: {error.message}", param="method.base") from None
    ours = _shapes(model, "model")
    for name, shape in _shapes(base, "method.base").items():
        if ours.get(name, shape) != shape:
            raise _unfit(base, name, shape, ours[name])


def _shapes(folder: Path, field: str) -> dict[str, list[int]]:
    """Shapes by the names in the files, from their headers."""
    shapes: dict[str, list[int]] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            opened: Any = safe_open(file, "pt")
            with opened as weights:
                shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{field}: {folder.name} cannot be loaded: {error}", param=field) from None
    return shapes


def _unfit(base: Path, name: str, found: list[int], wanted: list[int]) -> ModelError:
    return ModelError(
        f"method.base: weight {name} of {base.name} is {found}, that of the model {wanted}; "
        "the base must be of the same architecture and size",
        param="method.base",
    )


@torch.no_grad()
def begin_from_base(context: Context) -> None:
    """Replace the model's weights by the base model's. Raises ModelError where the two do not have the same shapes."""
    term = context.spec.method
    assert isinstance(term, Retrain)
    folder = context.inputs.folder(term.base, "method.base")
    check_folder(folder)
    ours = plain_parameters(context.model)
    for name, tensor in originals(folder, context.model):
        p = ours.pop(name, None)
        if p is None:
            continue
        if p.shape != tensor.shape:
            raise _unfit(folder, name, list(tensor.shape), list(p.shape))
        p.copy_(tensor)
    if ours:
        raise ModelError(f"method.base: {folder.name} lacks {len(ours)} of the model's weights", param="method.base")
