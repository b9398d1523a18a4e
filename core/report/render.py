"""The report as a page for people: the same facts, with plots, on paper too. It holds no script and fetches nothing."""

import base64
import functools
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from core.report.schema import Report
from core.spec.metrics import METRICS

_VERDICTS = {
    "passed": "Every gate held.",
    "not_passed": "At least one gate did not hold.",
    "inconclusive": "The evidence does not settle it.",
}


def html(report: Report, plots: Mapping[str, bytes] | None = None) -> str:
    """The page. `plots` are drawings (SVG) by name; they become images, in which nothing runs."""
    images = {name: base64.b64encode(drawing).decode() for name, drawing in sorted((plots or {}).items())}
    whole = report.model_dump(mode="json")
    page: str = _template().render(
        report=whole, says=_VERDICTS[report.verdict.verdict], metrics=_compared(whole), plots=images
    )
    return page


def _compared(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line a metric: its name, what it means, before and after."""
    before, after = report["before"], report["after"]
    lines = []
    for name in dict.fromkeys((*before, *after)):
        named = METRICS.get(name)
        title = named.title if named is not None else ""
        lines.append({"name": name, "title": title, "before": before.get(name), "after": after.get(name)})
    return lines


@functools.cache
def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    environment.filters["records"] = lambda taken: sum(last - first + 1 for first, last in taken)
    return environment.from_string(files("core.report").joinpath("page.html").read_text("utf-8"))


def _number(value: float | int) -> str:
    """Four digits, as a reader compares them; the JSON has them all."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
