"""What of a request a model folder can be seen not to have from its small files, before any weight is read.

It imports nothing heavy. The engine asks it; what a service refuses is wrong with the request itself.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.anatomy import depth_of
from core.errors import ModelError, Problem, SpecError
from core.spec.job import JobSpec
from core.spec.layers import resolved_layer
from core.spec.training import Training

# Where a tokenizer keeps its chat template; the last is a folder of several.
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
_TEMPLATES_OF_OUR_OWN = "plain, soul, llama2"


def check_against(spec: JobSpec, folder: Path) -> None:
    """Raises SpecError with every field that this model cannot serve, or ModelError where it has no configuration."""
    config = _object(folder / "config.json")
    problems = list(_layers(spec, config))
    if spec.data.prompt == "chat" and not _has_template(folder):
        message = f"The model's tokenizer has no chat template. Allowed: {_TEMPLATES_OF_OUR_OWN}."
        problems.append(Problem("data.prompt", "chat", message))
    refusals = getattr(spec.method, "refusals_file", None)
    if refusals is not None and not os.path.isfile(refusals):  # noqa: PTH113 -- Path.is_file raises for a long name
        message = "There is no such file. Allowed: a file of one refusal sentence a line."
        problems.append(Problem("method.refusals_file", refusals, message))
    if problems:
        raise SpecError(problems)


def trained_layers(training: Training, depth: int) -> list[int] | None:
    """The decoder layers that `training.layers` chooses, counted from 0, in order; None where it chooses none.

    Raises SpecError for one that does not exist.
    """
    if training.layers is None:
        return None
    problems = [
        Problem(f"training.layers.{i}", layer, _no_layer(-depth, depth))
        for i, layer in enumerate(training.layers)
        if not -depth <= layer < depth
    ]
    chosen = sorted({layer % depth for layer in training.layers})
    if not problems and len(chosen) < len(training.layers):
        problems = [Problem("training.layers", list(training.layers), _named_twice(training.layers, depth))]
    if problems:
        raise SpecError(problems)
    return chosen


def _layers(spec: JobSpec, config: Mapping[str, Any]) -> Iterator[Problem]:
    asked = {"method.layer": spec.method, "method.retain.layer": spec.method.retain}
    named = {field: layer for field, of in asked.items() if (layer := getattr(of, "layer", None)) is not None}
    if not named and spec.training.layers is None:
        return
    depth = depth_of(config)
    for field, layer in named.items():
        if layer >= depth:
            yield Problem(field, layer, _no_layer(0, depth))
    try:
        chosen = trained_layers(spec.training, depth)
    except SpecError as error:
        yield from error.problems
        return
    looked_at = resolved_layer(spec.method, depth)
    # Without this a pass that looks inside only would have no gradient at all.
    if chosen and looked_at is not None and chosen[0] > looked_at:
        reason = f"The method looks at layer {looked_at}, whose states no layer above it changes."
        message = (
            f"{reason} Allowed: one of 0 to {looked_at} at least." if looked_at else f"{reason} Allowed: 0 at least."
        )
        yield Problem("training.layers", list(spec.training.layers or ()), message)


def _named_twice(layers: Sequence[int], depth: int) -> str:
    first, second = next((a, b) for i, b in enumerate(layers) for a in layers[:i] if (a - b) % depth == 0)
    return f"Layers {first} and {second} are the same one of {depth}. Name each layer once."


def _no_layer(first: int, depth: int) -> str:
    return f"The model has {depth} decoder layers. Allowed: {first} to {depth - 1}."


def _has_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in _TEMPLATE_FILES):
        return True
    file = folder / "tokenizer_config.json"
    return file.is_file() and bool(_object(file).get("chat_template"))


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}", param="model") from None
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds no JSON object", param="model")
    return found
