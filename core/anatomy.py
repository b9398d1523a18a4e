"""Where a family keeps its decoder layers and, in each, the projection that writes an MLP's result.

It looks at names alone and imports nothing heavy, so that a layer can be checked before any weight is loaded.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from core.errors import ModelError

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

# What configurations call their number of decoder layers.
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# Parts of models that also see or hear: their layers are no decoder layers.
_OTHER_SENSES = re.compile(r"vision|audio|visual|image")
# The last matrix of an MLP: Llama and its like, OPT and Phi, GPT-2, GPT-NeoX, GPT-J; of an expert: Mixtral.
_DOWN = re.compile(r"(^|\.)(down_proj|fc2|mlp\.c_proj|dense_4h_to_h|fc_out|w2)(\.base_layer)?(\.weight)?$")


def depth_of(config: Mapping[str, Any]) -> int:
    """Number of decoder layers that a config.json tells of. Raises ModelError where it tells of none."""
    text = config.get("text_config")
    for part in (text if isinstance(text, Mapping) else {}, config):
        for name in _DEPTHS:
            if isinstance(part.get(name), int) and part[name] > 0:
                return int(part[name])
    raise ModelError(f"the configuration has none of {', '.join(_DEPTHS)}: its layers are not known", param="model")


def decoder_layers(model: "Module") -> Any:
    """The model's decoder layers, a ModuleList, wherever its family keeps them. Raises ModelError."""
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    numbered = [str(i) for i in range(count)]
    for name, module in model.named_modules():
        if not _OTHER_SENSES.search(name) and [child for child, _ in module.named_children()] == numbered:
            return module
    raise ModelError(f"model type '{model.config.model_type}' has no list of decoder layers", param="model")  # type: ignore[union-attr]


def down_projections(model: "Module", layers: Iterable[int]) -> list[tuple[str, "Parameter"]]:
    """Name and weight of the last matrix of the MLP in each of these layers, all experts' where there are several.

    Raises ModelError where a layer does not exist or has none that is known.
    """
    decoder = decoder_layers(model)
    names = {id(weight): name for name, weight in model.named_parameters()}
    found = []
    for layer in layers:
        if not 0 <= layer < len(decoder):
            raise ModelError(f"layer {layer} does not exist; allowed: 0 to {len(decoder) - 1}", param="model")
        inside = [w for name, w in decoder[layer].named_parameters() if w.ndim > 1 and _DOWN.search(name)]
        if not inside:
            kind = model.config.model_type  # type: ignore[union-attr]
            raise ModelError(f"model type '{kind}' has no down projection known here in layer {layer}", param="model")
        found += [(names[id(w)], w) for w in inside]
    return found


def layer_of(parameter: str) -> int | None:
    """The decoder layer that a parameter of this name belongs to; None for embeddings, last norm and head."""
    if _OTHER_SENSES.search(parameter):
        return None
    number = re.search(r"\.(\d+)\.", parameter)
    return int(number[1]) if number else None
