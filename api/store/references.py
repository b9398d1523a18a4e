"""What a resolved spec names: models by the field that names them, uploads by the set they are.

Read off the JSON as it is stored, since another version of Lethe may have written it.
"""

from collections.abc import Mapping
from typing import Any

_MODELS = (("model",), ("method", "base"), ("evaluation", "retrained", "model"), ("evaluation", "reference"))


def models(spec: Mapping[str, Any]) -> dict[str, Mapping[str, str]]:
    """Field to model, `{"id": ...}` of a registered one or `{"path": ...}`: those that are given."""
    found = {}
    for field in _MODELS:
        value: Any = spec
        for name in field:
            value = (value or {}).get(name)
        if value:
            found[".".join(field)] = value
    return found


def uploads(spec: Mapping[str, Any]) -> dict[str, str]:
    """Name of a set to the id of the upload that it is."""
    return {
        name: source["dataset"]
        for name, source in spec["data"].items()
        if isinstance(source, dict) and source.get("source") == "upload"
    }
