"""Along training: the losses step by step, and at every look how much was forgotten and how much is still there."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.plots.sheet import BLACK, COLD, WARM, drawable, identifier, legend, line, pen, pens, room, sheet, steps_below
from core.spec.metrics import info

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Told = Mapping[str, float]
Column = tuple[list[float], list[float]]  # steps, values

_LOSSES = {
    "loss": ("whole loss", BLACK),
    "forget_loss": ("forget term", pen(WARM, 0)),
    "retain_loss": ("retain term", pen(COLD, 0)),
}
# More points than this at 720 px are a wall.
_POINTS = 400
# What of a look is drawn; each from 0 to 1.
SHOWN = (
    "forget.probability",
    "forget.extraction_strength",
    "forget.truth_ratio",
    "membership.min_k.auc",
    "retain.probability",
    "retain.exact_memorization",
    "retain.truth_ratio",
)
_FORGET, _RETAIN, _COUNTED = "forget.probability", "retain.probability", "forgetting"


def curves(folder: Path, training_curve: Sequence[Told]) -> Path | None:
    """`losses.svg`: the loss of every optimizer step and its two terms, each as weighted in the sum.

    An entry of the curve has `step`, and of `loss`, `forget_loss` and `retain_loss` those that the method has. Beyond
    400 steps a point is the mean of as many steps as the axis says. None where there is no number to draw.
    """
    together = math.ceil(len(training_curve) / _POINTS) or 1
    lines = {key: column for key in _LOSSES if (column := _means(*_column(training_curve, key), together))[0]}
    if not lines:
        return None
    if "retain_loss" not in lines and "loss" in lines:
        # The only term is the whole loss: two lines would hide each other.
        lines.pop("forget_loss", None)
    file = folder / "losses.svg"
    averaged = "" if together == 1 else f", mean of {together} steps"
    said = _said(f"Losses by optimizer step{averaged}", lines)
    with sheet(file, "Losses along training", said, [3.2]) as (axes,):
        for i, (key, (x, y)) in enumerate(lines.items()):
            line(axes, x, y, *_LOSSES[key], shift=i)
        axes.set_ylabel(f"weighted loss{averaged}")
        steps_below(axes)
        legend(axes)
    return file


def looks(folder: Path, looks: Sequence[Told], chosen: int | None, metrics: Sequence[str] = SHOWN) -> Path | None:
    """`looks.svg`: metrics at every look, and the path of what is kept against what is still known.

    A look has `step`, values by metric, and where training may stop early `forgetting` (0 to 1) and `within_budget` (0
    or 1). `chosen` is the step whose weights are delivered, None where there was no choice. Of `metrics`, those that go
    from 0 to 1 are drawn. None where no look has a number to draw. Raises KeyError for a metric that is none.
    """
    unit = [name for name in metrics if (info(name).lowest, info(name).highest) == (0, 1)]
    lines = {name: column for name in [*unit, _COUNTED] if (column := _column(looks, name))[0]}
    path = [look for look in looks if all(drawable(look.get(key)) for key in ("step", _FORGET, _RETAIN))]
    if not lines and not path:
        return None
    file = folder / "looks.svg"
    heights = [2.8 + room(list(lines)), *([3.2] if path else [])]
    with sheet(file, "Forgetting and utility along training", _said("Metrics by step", lines), heights) as panels:
        _values(panels[0], lines, chosen)
        if path:
            _path(panels[1], path, chosen)
    return file


def _values(axes: "Axes", lines: Mapping[str, Column], chosen: int | None) -> None:
    drawn = {**pens(lines), _COUNTED: BLACK}
    for i, (name, (x, y)) in enumerate(lines.items()):
        lower = name != _COUNTED and info(name).better == "lower"
        line(axes, x, y, f"{name} {'↓' if lower else '↑'}", drawn[name], i)
    if chosen is not None:
        name = f"delivered: step {chosen}"
        axes.axvline(chosen, color="black", linestyle=":", linewidth=1.4, label=name, gid=identifier("delivered line"))
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("value (arrow: the better way)")
    steps_below(axes)
    legend(axes)


def _path(axes: "Axes", path: Sequence[Told], chosen: int | None) -> None:
    """From the first look on, in the order of training; the way to go is up and to the left."""
    inside = [look for look in path if look.get("within_budget", 1)]
    outside = [look for look in path if not look.get("within_budget", 1)]
    delivered = [look for look in path if look["step"] == chosen][-1:]
    cold, warm = pen(COLD, 0).colour, pen(WARM, 0).colour
    hollow = {"markerfacecolor": "white", "markeredgecolor": warm, "markeredgewidth": 1.4}
    marks: tuple[tuple[str, Sequence[Told], dict[str, Any]], ...] = (
        ("a look", inside, {"marker": "o", "markersize": 6, "color": cold}),
        ("a look outside the utility budget", outside, {"marker": "o", "markersize": 6, **hollow}),
        (f"the first: step {path[0]['step']:g}", path[:1], {"marker": "s", "markersize": 7, "color": "black"}),
        (f"delivered: step {chosen}", delivered, {"marker": "*", "markersize": 15, "color": "black"}),
    )
    axes.plot(*_places(path), color="#8c8c8c", gid=identifier("path"))
    for name, seen, how in marks:
        if seen:
            axes.plot(*_places(seen), label=name, gid=identifier(name.partition(":")[0]), linestyle="none", **how)
    # From 0 on both axes: a tenth lost looks like a tenth.
    x, y = _places(path)
    axes.set_xlim(0, 1.05 * max([1e-3, *x]))
    axes.set_ylim(0, 1.1 * max([1e-3, *y]))
    axes.set_xlabel(f"{_FORGET} (to the left: forgotten)")
    axes.set_ylabel(f"{_RETAIN} (up: kept)")
    legend(axes)


def _places(path: Sequence[Told]) -> Column:
    return [look[_FORGET] for look in path], [look[_RETAIN] for look in path]


def _column(told: Sequence[Told], key: str) -> Column:
    """Steps and values of the entries that have a number there."""
    found = [(entry["step"], entry[key]) for entry in told if drawable(entry.get("step")) and drawable(entry.get(key))]
    return [x for x, _ in found], [y for _, y in found]


def _means(x: Sequence[float], y: Sequence[float], together: int) -> Column:
    """Means of so many entries each, the last of what is left."""
    parts = [slice(at, at + together) for at in range(0, len(x), together)]
    return [sum(x[p]) / len(x[p]) for p in parts], [sum(y[p]) / len(y[p]) for p in parts]


def _said(what: str, lines: Mapping[str, Column]) -> str:
    """The picture in words: where every line begins and ends."""
    ends = [f"{name} {y[0]:.3g} at step {x[0]:g}, {y[-1]:.3g} at step {x[-1]:g}" for name, (x, y) in lines.items()]
    return f"{what}. {'; '.join(ends)}."
