"""Methods and presets, for people: read off the spec classes and tables, so that it cannot differ from them."""

import itertools
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from core.spec.catalogue import catalogue
from core.spec.methods import FORGET_TERMS
from core.spec.needs import NEEDS
from core.spec.retain import RETAIN_TERMS


def methods_table() -> list[dict[str, Any]]:
    """Every method and retain term: `name`, `kind` (`method` or `retain`), `summary`, `needs`, `required`, `defaults`,
    `aliases`, `source`.

    `needs` are words for what it sees beside the forget set (or retain set) and the model's log-probabilities; an alias
    comes with the fields that it fixes.
    """
    told = catalogue()["methods"]
    return [
        _row(kind, entry, told["aliases"])
        for kind, part in (("method", "forget"), ("retain", "retain"))
        for entry in told[part]
    ]


def methods_text(width: int = 100) -> str:
    """The table as text of at most `width` columns, where no word is wider."""
    parts = []
    for kind, title in (("method", "Methods"), ("retain", "Retain terms")):
        rows = [row for row in methods_table() if row["kind"] == kind]
        parts += [title, "\n".join(line for row in rows for line in _lines(row, width))]
    return "\n\n".join(parts)


def presets_text(width: int = 100) -> str:
    """Every preset as text of at most `width` columns, where no word is wider; what several share stands once."""
    parts = []
    for (source, note), presets in itertools.groupby(catalogue()["presets"], lambda p: (p["source"], p["note"])):
        lines = [*map(_preset_line, presets), *(f"  {word}" for word in (f"source: {source}", note) if word)]
        parts.append("\n".join(textwrap.fill(line, width, subsequent_indent="    ") for line in lines))
    return "\n\n".join(parts)


def _preset_line(preset: Mapping[str, Any]) -> str:
    told = [f"{part}: {_fields(fields)}" for part, fields in preset["fields"].items()]
    return f"{preset['name']}  {'; '.join(told)}"


def _fields(fields: Mapping[str, Any]) -> str:
    return ", ".join(str(value) if key == "name" else f"{key} {_short(value)}" for key, value in fields.items())


def _row(kind: str, entry: Mapping[str, Any], aliases: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    spec = FORGET_TERMS[entry["name"]] if kind == "method" else RETAIN_TERMS[entry["name"]]
    needs = [NEEDS[need] for need in NEEDS if need in spec.needs]
    needs += ["the retain set"] if getattr(spec, "needs_retain", False) else []
    fields = entry["fields"]
    own = {alias: dict(fixed) for alias, fixed in aliases.items() if fixed["name"] == entry["name"]}
    return {
        "name": entry["name"],
        "kind": kind,
        "summary": entry["summary"],
        "needs": needs,
        "required": [name for name, field in fields.items() if field.get("required")],
        "defaults": {name: field["default"] for name, field in fields.items() if "default" in field},
        "aliases": own if kind == "method" else {},
        "source": entry["citation"],
    }


def _lines(row: Mapping[str, Any], width: int) -> Iterator[str]:
    said = {
        "": row["summary"],
        "needs": ", ".join(row["needs"]),
        "fields": ", ".join([*row["required"], *(f"{k} = {_short(v)}" for k, v in row["defaults"].items())]),
        "aliases": ", ".join(_alias(alias, fixed) for alias, fixed in row["aliases"].items()),
        "source": row["source"] or "",
    }
    for label, text in said.items():
        if text:
            before = f"  {'':<15}{label:<9}" if label else f"  {row['name']:<15}"
            yield textwrap.fill(text, width, initial_indent=before, subsequent_indent=" " * len(before))


def _alias(name: str, fixed: Mapping[str, Any]) -> str:
    rest = [f"{key} {_short(value)}" for key, value in fixed.items() if key != "name"]
    return f"{name} ({', '.join(rest)})" if rest else name


def _short(value: Any) -> str:
    """A default as one reads it: a term or schedule by its name, and its other fields where an alias fixes them."""
    if isinstance(value, Mapping) and "name" in value:
        rest = [f"{key} {_short(inner)}" for key, inner in value.items() if key != "name" and not _usual(key, inner)]
        return " ".join([str(value["name"]), *rest])
    return json.dumps(value, ensure_ascii=False)


def _usual(key: str, value: Any) -> bool:
    return (key == "schedule" and value == {"name": "constant"}) or (key == "weight" and value in (0.0, 1.0))
