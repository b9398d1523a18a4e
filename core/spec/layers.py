"""Which layer a request looks at, and which it then trains: known once the model's depth is."""

from core.spec.methods import Method
from core.spec.retain import HiddenRetain
from core.spec.terms import Rmu


def resolved_layer(method: Method, depth: int) -> int | None:
    """The decoder layer, counted from 0, that the method or its retain term looks at; None where neither does.

    Where the request leaves it open: the last layer of the first quarter, at least 2, and one that there is.
    """
    if not isinstance(method, Rmu) and not isinstance(method.retain, HiddenRetain):
        return None
    asked = [getattr(part, "layer", None) for part in (method, method.retain)]
    given = next((layer for layer in asked if layer is not None), None)
    return min(max(2, depth // 4 - 1), depth - 1) if given is None else given


def steering_layers(layer: int) -> range:
    """The layers whose `mlp.down_proj` RMU trains: the one it looks at and the two below (arXiv:2403.03218)."""
    return range(max(0, layer - 2), layer + 1)
