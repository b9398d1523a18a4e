"""The sheet that every plot is drawn on: its size and letters, the pens that lines are told apart by, and an SVG file
that is the same bytes for the same numbers."""

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from core.spec.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 7.5  # inches, of 96 CSS pixels each: 720 px
_LINE_OF_TEXT = 0.2  # inches
# Layout adds and squares what it is given, and must get numbers out.
_LARGEST = 1e30
_MARKED = 12
_GREY = "#595959"
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": _GREY,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.labelsize": 10,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "font.size": 9.5,
    "grid.color": "#e3e3e3",
    "legend.fontsize": 9.5,
    "path.simplify": False,
    "svg.fonttype": "none",  # letters stay letters: they can be searched for, and read aloud
    "svg.hashsalt": "lethe",  # otherwise every drawing of the same picture has other ids
    "text.parse_math": False,  # a name may hold a dollar sign
    "xtick.color": _GREY,
    "xtick.labelcolor": "black",
    "ytick.color": _GREY,
    "ytick.labelcolor": "black",
}

Dash = tuple[int, tuple[float, ...] | None]


@dataclass(frozen=True)
class Pen:
    """What a line is drawn with. Dashes and marker tell it from every other where there is no colour."""

    colour: str
    marker: str
    dash: Dash = (0, None)
    width: float = 1.8


BLACK = Pen("#000000", "o", width=2.6)
# Told apart by those who see red and green alike too, and each at least 3:1 against white. Warm and drawn through for
# what is to be forgotten, cold and dashed for what is to stay.
WARM, COLD = 0, 1
_COLOURS = (("#d55e00", "#882255", "#c35c97", "#7a6a00"), ("#0072b2", "#00835f", "#332288", "#5f8fa8"))
_MARKERS = (("o", "s", "^", "D"), ("v", "P", "X", "<"))
_DASHES: tuple[Dash, Dash] = ((0, None), (0, (5, 2)))


def pen(group: int, i: int) -> Pen:
    """The i-th pen of WARM or COLD; the first 16 of each all differ."""
    turn, place = divmod(i, 4)
    return Pen(_COLOURS[group][place], _MARKERS[group][(place + turn) % 4], _DASHES[group])


def pens(names: Iterable[str]) -> dict[str, Pen]:
    """A pen for every metric, cold for what a gate on utility speaks of. A name may go on after a blank."""
    counts, found = [0, 0], {}
    for name in names:
        metric = METRICS.get(name.partition(" ")[0])
        group = COLD if metric and metric.about == "utility" else WARM
        found[name] = pen(group, counts[group])
        counts[group] += 1
    return found


def drawable(value: float | None) -> bool:
    """Whether it has a place on a sheet: a finite number, and not an absurdly large one."""
    return value is not None and math.isfinite(value) and abs(value) < _LARGEST


@contextmanager
def sheet(file: Path, title: str, describes: str, heights: Sequence[float]) -> "Iterator[list[Axes]]":
    """Panels of these heights in inches, one below the other, which become `file` when the block ends.

    `title` stands above them; `describes` is for those who cannot see the picture.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    # Drawing reads the style as much as setting up does. Whatever the user set for plots of their own is put back.
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(WIDTH, sum(heights) + 2 * _LINE_OF_TEXT), layout="constrained")
        figure.suptitle(title, x=0.01, horizontalalignment="left")
        yield list(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Title": title, "Creator": "Lethe", "Date": None})
    # Screen readers speak an image's title and description; matplotlib writes the first only.
    svg = drawn.getvalue().replace("<svg ", '<svg role="img" ', 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(svg.replace("</title>", f"</title>\n <desc>{escape(describes)}</desc>", 1), "utf-8")


def line(axes: "Axes", x: Sequence[float], y: Sequence[float], name: str, drawn: Pen, shift: int = 0) -> None:
    """One line through the points in the order given.

    Of a long line about a dozen points are marked, beginning a quarter of the way to the next one later for every
    `shift`, so that markers of lines side by side do not hide each other.
    """
    apart = max(1, len(x) // _MARKED)
    axes.plot(
        x,
        y,
        label=name,
        gid=identifier(name),
        color=drawn.colour,
        linestyle=drawn.dash,
        linewidth=drawn.width,
        marker=drawn.marker,
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        markevery=(shift % 4 * apart // 4, apart),
    )


def identifier(name: str) -> str:
    """The XML id under which a name is found in the file: what is no letter, digit, dot or dash becomes a dash."""
    return f"drawn-{re.sub(r'[^A-Za-z0-9_.]+', '-', name).strip('-')}"


def legend(axes: "Axes") -> None:
    """The names of what a panel shows, above it."""
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles,
        names,
        ncols=_columns(names),
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.3,
        frameon=False,
        handlelength=3.2,
    )


def room(names: Sequence[str]) -> float:
    """Inches that a legend of these names is high."""
    return _LINE_OF_TEXT * math.ceil(len(names) / _columns(names))


def _columns(names: Sequence[str]) -> int:
    longest = max(map(len, names), default=0)
    return 3 if longest <= 22 else 2 if longest <= 36 else 1


def steps_below(axes: "Axes") -> None:
    """The x axis counts optimizer steps."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
