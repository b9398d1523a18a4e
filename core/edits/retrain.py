"""Retraining: the base model, as it was before it met the forget set, fine-tuned on the retain set alone.

The gold standard that approximate unlearning is compared with.
"""

import torch

from core.adapters import plain_parameters
from core.edits.context import Context
from core.edits.task_vector import originals
from core.errors import ModelError
from core.model import check_folder
from core.spec.edits import Retrain


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
            raise ModelError(
                f"method.base: weight {name} of {folder.name} is {list(tensor.shape)}, that of the model "
                f"{list(p.shape)}; the base must be of the same architecture and size",
                param="method.base",
            )
        p.copy_(tensor)
    if ours:
        raise ModelError(f"method.base: {folder.name} lacks {len(ours)} of the model's weights", param="method.base")
