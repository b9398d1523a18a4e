"""What pydantic finds wrong with a field, in a sentence: the value that was given, and what is allowed."""

from collections.abc import Mapping
from typing import Any

from core.spec.base import FILE_PATH, shown
from core.spec.evaluation import TASK
from core.spec.models import ALIAS, MODEL_ID
from core.spec.sources import COLUMN, HUB_ID, NAME, SPLIT, UPLOAD_ID


def worded(fault: Mapping[str, Any]) -> str:
    """The sentence; of a fault as `ValidationError.errors` lists it."""
    kind, value, message = fault["type"], fault.get("input"), fault["msg"].rstrip(".")
    context = fault.get("ctx", {})
    if kind == "missing":
        return "This field is required."
    if kind in _SAYS_ENOUGH:
        return f"{message}."
    if kind in _WANTS_OBJECT:
        message = "Input should be a JSON object"
    elif kind == "string_pattern_mismatch" and context["pattern"] in WANTED:
        message = f"Input should be {WANTED[context['pattern']]}"
    return f"{message} (got {shown(value)})."


# What a text must be, in words, where a pattern says it for programs.
WANTED = {
    FILE_PATH: "a path without a zero character",
    MODEL_ID: "the id of a registered model: mdl_ with what followed it",
    ALIAS: "an alias such as production: at most 63 of a-z, 0-9 and -, beginning with a letter",
    UPLOAD_ID: "the id of an uploaded set: ds_ with what followed it",
    HUB_ID: "an id such as locuslab/TOFU",
    SPLIT: "the name of a split, such as forget01: at most 64 of a-z, 0-9 and _",
    NAME: "a name such as wikitext-2-raw-v1: at most 96 letters, digits, _, - and ., not beginning with - or .",
    TASK: "the name of a task of lm-evaluation-harness, such as arc_easy",
    COLUMN: "the name of a column: 1 to 200 characters",
}
_WANTS_OBJECT = {"model_type", "model_attributes_type", "dict_type"}
_SAYS_ENOUGH = {"conflict", "unknown_field", "unknown_metric", "gate_sides", "gate_relative", "gate_never"}
