"""After training: how the rows of each set are spread before and after, and metrics over a series of requests."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.plots.sheet import COLD, WARM, drawable, identifier, legend, line, pen, pens, room, sheet

_BINS = 25


def distributions(
    folder: Path, name: str, title: str, series: Mapping[str, Sequence[float]], unit: str = ""
) -> Path | None:
    """`distribution-<name>.svg`: a histogram of one score a row for every set, on one scale, one below the other.

    `series` holds the scores by the words that say whose they are ("forget, before"), in the order of the panels, and
    `unit` is theirs. A set without a number to draw has no panel; None where no set has one.
    """
    drawn = {label: found for label, scores in series.items() if (found := [float(v) for v in scores if drawable(v)])}
    if not drawn:
        return None
    edges = _edges([v for scores in drawn.values() for v in scores])
    words = {label: _words(label, series[label], scores) for label, scores in drawn.items()}
    file = folder / f"distribution-{name}.svg"
    with sheet(file, title, f"Histograms over rows. {'; '.join(words.values())}.", [1.25] * len(drawn)) as panels:
        for axes, (label, scores) in zip(panels, drawn.items(), strict=True):
            colour = pen(WARM if label.startswith("forget") else COLD, 0).colour
            shares = np.histogram(scores, edges)[0] / len(scores)
            axes.stairs(shares, edges, fill=True, color=colour, gid=identifier(label))
            axes.axvline(statistics.median(scores), color="black", linestyle=(0, (3, 2)), linewidth=1.4)
            axes.set_title(f"{words[label]} (dashed)")
            axes.sharex(panels[0])
            axes.sharey(panels[0])
            axes.tick_params(labelbottom=axes is panels[-1])
        panels[0].figure.supylabel("share of rows")
        panels[-1].set_xlabel(f"{title} ({unit})" if unit else title)
    return file


def _words(label: str, given: Sequence[float], drawn: Sequence[float]) -> str:
    rows = "1 row" if len(drawn) == 1 else f"{len(drawn)} rows"
    without = f", {len(given) - len(drawn)} more without a number" if len(given) > len(drawn) else ""
    return f"{label}: {rows}{without}, median {statistics.median(drawn):.3g}"


def _edges(values: Sequence[float]) -> NDArray[np.float64]:
    """Bin edges from the least value to the greatest; around them where they are all but one."""
    low, high = min(values), max(values)
    scale = max(1.0, abs(low), abs(high))
    if high - low < 1e-4 * scale:
        low, high = low - 0.05 * scale, high + 0.05 * scale
    return np.linspace(low, high, _BINS + 1)


def series(
    folder: Path,
    values: Mapping[str, Sequence[float | None]],
    *,
    x: Sequence[float],
    xlabel: str,
    title: str = "Request after request",
) -> Path | None:
    """`series.svg`: metrics over requests (MUSE's sustainability) or sizes of the forget set (its scalability).

    `values` has for every metric one value a position in `x`, None where it is absent. Metrics that stay between 0 and
    1 share a panel; each other has its own. None where there is nothing to draw. Source: arXiv:2407.06460.
    """
    lines = {}
    for name, column in values.items():
        found = [(at, v) for at, v in zip(x, column, strict=True) if v is not None and drawable(v) and drawable(at)]
        if found:
            lines[name] = ([at for at, _ in found], [v for _, v in found])
    if not lines:
        return None
    together = [name for name, (_, y) in lines.items() if min(y) >= 0 and max(y) <= 1]
    groups = [names for names in (together, *([name] for name in lines if name not in together)) if names]
    ends = [f"{name} {y[0]:.3g} at {at[0]:g}, {y[-1]:.3g} at {at[-1]:g}" for name, (at, y) in lines.items()]
    heights = [(2.9 if names is together else 1.7) + room(names) for names in groups]
    drawn = pens(lines)
    file = folder / "series.svg"
    with sheet(file, title, f"Metrics by {xlabel}. {'; '.join(ends)}.", heights) as panels:
        for axes, names in zip(panels, groups, strict=True):
            for i, name in enumerate(names):
                line(axes, *lines[name], name, drawn[name], i)
            if names is together:
                axes.set_ylim(-0.03, 1.03)
            axes.set_ylabel("value, 0 to 1" if names is together else "value")
            axes.sharex(panels[0])
            legend(axes)
        if (ticks := _ticks(x)) is not None:
            panels[0].set_xticks(ticks)
        panels[-1].set_xlabel(xlabel)
    return file


def _ticks(x: Sequence[float]) -> list[float] | None:
    """The positions themselves, where they are few and lie far enough apart for their labels."""
    positions = sorted({at for at in x if drawable(at)})
    closest = min((b - a for a, b in pairwise(positions)), default=math.inf)
    return positions if closest * 12 >= positions[-1] - positions[0] else None
