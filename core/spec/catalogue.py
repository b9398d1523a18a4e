"""What can be asked for, read off the spec classes, where names, fields, defaults, limits and citations are written."""

import copy
import functools
import inspect
import re
from collections.abc import Mapping
from typing import Any

from core.spec.attacks import ATTACKS
from core.spec.base import Spec
from core.spec.gates import Gate
from core.spec.methods import ALIASES, FORGET_TERMS
from core.spec.metrics import METRICS, MetricInfo
from core.spec.optimizers import OPTIMIZERS
from core.spec.presets import PRESETS, Preset
from core.spec.profiles import PROFILES
from core.spec.retain import RETAIN_TERMS
from core.spec.sources import SOURCES

# JSON Schema's words for what a value may be.
_LIMITS = (
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "pattern",
)


def catalogue() -> dict[str, Any]:
    """Methods, optimizers, sources, metrics, gates and presets, as `GET /catalogue` gives them: JSON values only.

    An entry has `name`, `summary`, `citation` (or null) and `fields`. A field has `type`, `required` or `default`,
    `limits` in JSON Schema's words, and where they exist `nullable`, `allowed`, `items` and `description`. A metric has
    no fields, but `title`, what it is `about`, the `sets` of the data and the fields of `evaluation` that it `needs`,
    the `limits` of its values and which way is `better`. A profile has `name`, `title`, `gates` and `attacks`.
    A preset has `name`, `source`, `note` and, as `fields`, the part of a request that it stands for.
    """
    return copy.deepcopy(_built())


@functools.cache
def _built() -> dict[str, Any]:
    return {
        "methods": {
            "forget": _entries(FORGET_TERMS),
            "retain": _entries(RETAIN_TERMS),
            "aliases": ALIASES,
        },
        "optimizers": _entries(OPTIMIZERS),
        "sources": _entries(SOURCES),
        "metrics": [_metric(name, metric) for name, metric in METRICS.items()],
        "gates": [_entry("gate", Gate)],
        "attacks": _entries(ATTACKS),
        "profiles": [
            {"name": name, "title": p.title, "gates": list(p.gates), "attacks": list(p.attacks)}
            for name, p in PROFILES.items()
        ],
        "presets": [_preset(preset) for preset in PRESETS.values()],
    }


def _entries(table: Mapping[str, type[Spec]]) -> list[dict[str, Any]]:
    return [_entry(name, spec) for name, spec in table.items()]


def _entry(name: str, spec: type[Spec]) -> dict[str, Any]:
    schema = spec.model_json_schema()
    return {
        "name": name,
        "summary": _first_sentence(inspect.getdoc(spec) or ""),
        "citation": spec.citation or None,
        "fields": {
            field: _field(inner, field in schema.get("required", ()))
            for field, inner in schema["properties"].items()
            if inner.get("const") != name  # The tag of a union says what the entry's name says.
        },
    }


def _metric(name: str, metric: MetricInfo) -> dict[str, Any]:
    limits = {"minimum": metric.lowest} | ({} if metric.highest is None else {"maximum": metric.highest})
    return {
        "name": name,
        "title": metric.title,
        "summary": metric.meaning,
        "citation": metric.citation or None,
        "about": metric.about,
        "sets": list(metric.sets),
        "needs": list(metric.needs),
        "better": metric.better,
        "limits": limits,
        "fields": {},
    }


def _preset(preset: Preset) -> dict[str, Any]:
    return {"name": preset.name, "source": preset.source, "note": preset.note, "fields": dict(preset.fields)}


def _field(schema: Mapping[str, Any], required: bool) -> dict[str, Any]:
    presence = {"required": True} if required else {"default": schema["default"]}
    described = {"description": schema["description"]} if "description" in schema else {}
    return {**_kind(schema), **presence, **described}


def _kind(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What a value may be, from its JSON schema."""
    choices = schema.get("anyOf", [])
    if {"type": "null"} in choices:
        (other,) = (choice for choice in choices if choice != {"type": "null"})
        return {**_kind(other), "nullable": True}
    kind: dict[str, Any] = {"type": schema.get("type", "object")}
    kind["limits"] = {word: schema[word] for word in _LIMITS if word in schema}
    if "discriminator" in schema:
        kind["allowed"] = sorted(schema["discriminator"]["mapping"])
    elif "enum" in schema or "const" in schema:
        kind["allowed"] = schema.get("enum", [schema.get("const")])
    if "prefixItems" in schema:
        kind["items"] = [_kind(item) for item in schema["prefixItems"]]
    elif "items" in schema:
        kind["items"] = _kind(schema["items"])
    return kind


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]
