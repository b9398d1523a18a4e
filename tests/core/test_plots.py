"""What the pictures show is read back from the SVG: a line's points lie as its numbers do."""

import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray

from core.plots import curves, distributions, looks, series
from core.plots.sheet import COLD, WARM, pen
from core.spec.metrics import METRICS

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
Place = tuple[float, float]

CURVE = [
    {"step": 1, "loss": 0.5, "forget_loss": -1.5, "retain_loss": 2.0, "grad_norm": 7.0, "lr": 1e-5},
    {"step": 2, "loss": -0.5, "forget_loss": -2.0, "retain_loss": 1.5, "grad_norm": 5.0, "lr": 1e-5},
    {"step": 5, "loss": -3.0, "forget_loss": -4.0, "retain_loss": 1.0, "grad_norm": 3.0, "lr": 1e-5},
]
LOOKS = [
    {"step": 0, "forget.probability": 0.9, "retain.probability": 0.8, "forgetting": 0.0, "within_budget": 1},
    {"step": 10, "forget.probability": 0.5, "retain.probability": 0.79, "forgetting": 0.4, "within_budget": 1},
    {"step": 20, "forget.probability": 0.2, "retain.probability": 0.7, "forgetting": 0.9, "within_budget": 1},
    {"step": 30, "forget.probability": 0.1, "retain.probability": 0.3, "forgetting": 1.0, "within_budget": 0},
]


def read(file: Path | None) -> Element:
    assert file is not None
    return ElementTree.parse(file).getroot()


def texts(root: Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def drawn(root: Element, name: str) -> Element:
    (found,) = (element for element in root.iter(f"{SVG}g") if element.get("id") == f"drawn-{name}")
    return found


def names(root: Element) -> set[str]:
    """What a picture draws, by id."""
    ids = (element.get("id") or "" for element in root.iter(f"{SVG}g"))
    return {name.removeprefix("drawn-") for name in ids if name.startswith("drawn-")}


def line(root: Element, name: str) -> list[Place]:
    """The points of a line on the sheet, in its order; y counts downwards."""
    path = drawn(root, name).find(f"{SVG}path")
    assert path is not None
    found = re.findall(r"[ML] (\S+) (\S+)", path.get("d") or "")
    return [(float(x), float(y)) for x, y in found]


def marks(root: Element, name: str) -> list[Place]:
    return [(float(m.get("x", "nan")), float(m.get("y", "nan"))) for m in drawn(root, name).iter(f"{SVG}use")]


def scale(on_sheet: list[float], values: list[float]) -> NDArray[np.float64]:
    """Slope and offset with which values became places; fails where no straight line does that."""
    assert len(on_sheet) == len(values)
    found = np.polyfit(values, on_sheet, 1)
    assert np.polyval(found, values) == pytest.approx(on_sheet, abs=1e-3)
    return found


def scales(points: list[Place], x: list[float], y: list[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    across, down = scale([p for p, _ in points], x), scale([p for _, p in points], y)
    assert across[0] > 0 > down[0]
    return across, down


def test_losses_lie_as_their_numbers_do_on_one_scale(tmp_path: Path) -> None:
    root = read(curves(tmp_path, CURVE))
    assert names(root) == {"whole-loss", "forget-term", "retain-term"}
    keys = {"whole-loss": "loss", "forget-term": "forget_loss", "retain-term": "retain_loss"}
    points = [p for name in keys for p in line(root, name)]
    steps = [entry["step"] for _ in keys for entry in CURVE]
    scales(points, steps, [entry[key] for key in keys.values() for entry in CURVE])
    assert [len(marks(root, name)) for name in keys] == [3, 3, 3]
    wanted = {"Losses along training", "optimizer step", "weighted loss", "whole loss", "forget term", "retain term"}
    assert wanted <= set(texts(root))
    assert not {"7", "1e-5", "grad_norm", "lr"} & set(texts(root))


def test_a_single_term_is_drawn_once(tmp_path: Path) -> None:
    root = read(curves(tmp_path, [{"step": s, "loss": 1 / s, "forget_loss": 1 / s} for s in (1, 2, 3)]))
    assert names(root) == {"whole-loss"}


def test_many_steps_become_means_that_say_of_how_many(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).normal(size=1000)
    root = read(curves(tmp_path, [{"step": s, "loss": loss} for s, loss in enumerate(losses)]))
    # 1000 steps, three a point; the last point has one.
    values = [float(losses[at : at + 3].mean()) for at in range(0, 1000, 3)]
    scales(line(root, "whole-loss"), [*np.arange(1.0, 999, 3), 999.0], values)
    assert "weighted loss, mean of 3 steps" in texts(root)
    assert 10 < len(marks(root, "whole-loss")) < 16


def test_looks_by_step_and_as_a_path(tmp_path: Path) -> None:
    root = read(looks(tmp_path, LOOKS, 20))
    steps = [float(look["step"]) for look in LOOKS]
    shown = ("forget.probability", "retain.probability", "forgetting")
    points = [p for name in shown for p in line(root, name)]
    across, _ = scales(points, steps * 3, [look[name] for name in shown for look in LOOKS])
    # The line at the delivered step stands where that step is.
    assert [x for x, _ in line(root, "delivered-line")] == pytest.approx([np.polyval(across, 20)] * 2, abs=1e-3)
    known, kept = ([look[f"{name}.probability"] for look in LOOKS] for name in ("forget", "retain"))
    path = line(root, "path")
    scales(path, known, kept)
    assert marks(root, "the-first") == path[:1]
    assert marks(root, "delivered") == path[2:3]
    assert marks(root, "a-look") == path[:3]
    assert marks(root, "a-look-outside-the-utility-budget") == path[3:]
    assert {
        "forget.probability ↓",
        "retain.probability ↑",
        "forgetting ↑",
        "delivered: step 20",
        "the first: step 0",
    } <= (set(texts(root)))


def test_nothing_is_marked_as_delivered_that_was_not_looked_at_or_chosen(tmp_path: Path) -> None:
    between = read(looks(tmp_path, LOOKS, 15))
    assert "delivered" not in names(between)
    assert "delivered-line" in names(between)
    plain = [{key: look[key] for key in ("step", "forget.probability", "retain.probability")} for look in LOOKS]
    root = read(looks(tmp_path, plain, None))
    assert names(root) == {"forget.probability", "retain.probability", "path", "a-look", "the-first"}
    assert len(marks(root, "a-look")) == 4


def test_without_a_retain_set_there_is_no_path(tmp_path: Path) -> None:
    forget = [{"step": look["step"], "forget.probability": look["forget.probability"]} for look in LOOKS]
    assert names(read(looks(tmp_path, forget, 20))) == {"forget.probability", "delivered-line"}


def test_looks_draw_the_metrics_asked_for_that_go_from_0_to_1(tmp_path: Path) -> None:
    watched = [name for name, metric in METRICS.items() if metric.watched]
    root = read(looks(tmp_path, [{"step": s, **dict.fromkeys(watched, 0.5)} for s in (1, 2)], None, watched))
    beside = {"path", "a-look", "the-first"}
    assert names(root) - beside == {name for name in watched if not name.endswith("perplexity")}


def test_histograms_are_shares_of_rows_on_one_scale(tmp_path: Path) -> None:
    scores = {"forget, before": [0.0, 1.0, 1.0, 1.0], "forget, after": [0.0, 0.5], "holdout, after": [0.5]}
    root = read(distributions(tmp_path, "rouge_l", "ROUGE-L recall", scores, unit="0 to 1"))
    assert names(root) == {"forget-before", "forget-after", "holdout-after"}
    found = {}
    for name in names(root):
        outline = line(root, name)
        base = outline[0][1]
        heights = {x: base - y for x, y in outline if base - y > 1e-6}
        left = min(x for x, _ in outline)
        width = max(x for x, _ in outline) - left
        # The middle of every bar as a share of the width, and its height.
        bars = {h: [(x - left) / width for x in heights if heights[x] == h] for h in set(heights.values())}
        found[name] = sorted((h, float(np.mean(x))) for h, x in bars.items())
    unit = found["holdout-after"][0][0]
    assert found["holdout-after"] == [(pytest.approx(unit), pytest.approx(0.5))]
    assert found["forget-before"] == [
        (pytest.approx(unit / 4, rel=1e-4), pytest.approx(0.02, abs=1e-4)),
        (pytest.approx(unit * 3 / 4, rel=1e-4), pytest.approx(0.98, abs=1e-4)),
    ]
    # Two bars of one height: their middle.
    assert {round(h / unit, 4) for h, _ in found["forget-after"]} == {0.5}
    assert {
        "share of rows",
        "ROUGE-L recall (0 to 1)",
        "forget, before: 4 rows, median 1 (dashed)",
        "holdout, after: 1 row, median 0.5 (dashed)",
    } <= set(texts(root))


def test_a_row_without_a_number_is_counted_and_not_drawn(tmp_path: Path) -> None:
    given = {"forget, after": [0.25, math.nan, 0.75, math.inf], "holdout, after": [math.nan]}
    root = read(distributions(tmp_path, "probability", "Probability", given))
    assert names(root) == {"forget-after"}
    assert "forget, after: 2 rows, 2 more without a number, median 0.5 (dashed)" in texts(root)


def test_metrics_over_requests(tmp_path: Path) -> None:
    values = {
        "forget.probability": [0.1, None, 0.4],
        "retain.probability of request 1": [0.9, 0.8, 0.5],
        "muse.privleak": [-20.0, 0.0, 30.0],
        "retain.truth_ratio": [None, math.nan, None],
    }
    root = read(series(tmp_path, values, x=[1, 2, 4], xlabel="requests carried out", title="Sustainability"))
    assert names(root) == {"forget.probability", "retain.probability-of-request-1", "muse.privleak"}
    both = line(root, "forget.probability") + line(root, "retain.probability-of-request-1")
    across, _ = scales(both, [1, 4, 1, 2, 4], [0.1, 0.4, 0.9, 0.8, 0.5])
    alone, _ = scales(line(root, "muse.privleak"), [1, 2, 4], [-20.0, 0.0, 30.0])
    assert alone == pytest.approx(across)
    axes = [element.get("id") for element in root.iter(f"{SVG}g") if (element.get("id") or "").startswith("axes")]
    assert len(axes) == 2
    assert {"Sustainability", "requests carried out", "value, 0 to 1", "value", "1", "2", "4"} <= set(texts(root))


def test_a_gap_between_lengths_is_an_error_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        series(tmp_path, {"forget.probability": [0.1]}, x=[1, 2], xlabel="requests")


def test_nothing_to_draw_is_no_file(tmp_path: Path) -> None:
    nan = math.nan
    assert curves(tmp_path, []) is None
    assert curves(tmp_path, [{"step": 1, "grad_norm": 2.0}, {"step": 2, "loss": nan}]) is None
    assert looks(tmp_path, [], 3) is None
    assert looks(tmp_path, [{"step": 1, "retain.perplexity": 4.0, "forget.probability": nan}], 1) is None
    assert distributions(tmp_path, "min_k", "Min-K", {}) is None
    assert distributions(tmp_path, "min_k", "Min-K", {"forget, after": [], "holdout, after": [nan]}) is None
    assert series(tmp_path, {}, x=[], xlabel="requests") is None
    assert series(tmp_path, {"forget.probability": [None]}, x=[1], xlabel="requests") is None
    assert list(tmp_path.iterdir()) == []


def test_one_point_is_a_mark(tmp_path: Path) -> None:
    assert len(marks(read(curves(tmp_path, CURVE[:1])), "whole-loss")) == 1
    assert len(marks(read(looks(tmp_path, LOOKS[:1], 0)), "delivered")) == 1
    assert (
        len(marks(read(series(tmp_path, {"forget.probability": [0.3]}, x=[400], xlabel="rows")), "forget.probability"))
        == 1
    )


@pytest.mark.parametrize("bad", [math.nan, 1e300])
def test_a_number_that_cannot_be_drawn_leaves_the_rest_as_it_is(tmp_path: Path, bad: float) -> None:
    clean, spoilt = tmp_path / "clean", tmp_path / "spoilt"
    one, other = curves(clean, CURVE), curves(spoilt, [*CURVE[:2], dict.fromkeys(CURVE[0], bad), *CURVE[2:]])
    assert one is not None
    assert other is not None
    assert one.read_bytes() == other.read_bytes()
    extra = {"step": 25, "forget.probability": bad, "retain.probability": bad, "forgetting": bad}
    one, other = looks(clean, LOOKS, 20), looks(spoilt, [*LOOKS[:3], extra, *LOOKS[3:]], 20)
    assert one is not None
    assert other is not None
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 0.0, 0.0],
        [5e-324, -5e-324, 0.0],
        [9e29, -9e29, 1.0],
        [1e16, 1e16 + 2, 1e16],
    ],
)
def test_any_numbers_give_a_picture(tmp_path: Path, values: list[float]) -> None:
    curve = [{"step": s, "loss": v, "forget_loss": v, "retain_loss": -v} for s, v in enumerate(values)]
    assert len(line(read(curves(tmp_path, curve)), "whole-loss")) == 3
    shares = [min(1.0, max(0.0, v)) for v in values]
    seen = [{"step": s, "forget.probability": v, "retain.probability": v} for s, v in enumerate(shares)]
    assert len(line(read(looks(tmp_path, seen, 1)), "path")) == 3
    assert names(read(distributions(tmp_path, "loss", "Loss", {"forget, after": values}, "nats"))) == {"forget-after"}
    over = series(
        tmp_path, {"retain.perplexity": values, "forget.loss": [1.0, 2.0, 3.0]}, x=[10, 11, 4000], xlabel="rows"
    )
    assert len(line(read(over), "retain.perplexity")) == 3


def test_the_same_numbers_are_the_same_bytes_whatever_style_the_user_has(tmp_path: Path) -> None:
    first = looks(tmp_path / "first", LOOKS, 20)
    with matplotlib.rc_context({"lines.linewidth": 9.0, "svg.fonttype": "path", "font.size": 30.0}):
        second = looks(tmp_path / "second", LOOKS, 20)
        assert matplotlib.rcParams["font.size"] == 30.0
    assert first is not None
    assert second is not None
    assert first.read_bytes() == second.read_bytes()
    assert re.search(r"\b20\d\d-\d\d-\d\d", first.read_text()) is None


def test_a_picture_says_what_it_is_and_is_720_pixels_wide(tmp_path: Path) -> None:
    root = read(curves(tmp_path, CURVE))
    assert root.get("role") == "img"
    assert root.get("width") == "540pt"
    assert [child.tag for child in root][:2] == [f"{SVG}title", f"{SVG}desc"]
    assert root.findtext(f"{SVG}title") == "Losses along training"
    said = root.findtext(f"{SVG}desc") or ""
    assert "forget_loss -1.5 at step 1, -4 at step 5" in said
    odd = read(distributions(tmp_path, "odd", "Loss < 1 & $x$", {"forget, after": [1.0]}))
    assert odd.findtext(f"{SVG}title") == "Loss < 1 & $x$"
    assert "Loss < 1 & $x$" in texts(odd)


def test_the_legend_stands_above_what_is_drawn(tmp_path: Path) -> None:
    watched = [name for name, metric in METRICS.items() if metric.watched]
    root = read(looks(tmp_path, [{"step": s, **dict.fromkeys(watched, s / 2)} for s in (0, 1, 2)], 1, watched))
    panel, *_ = (g for g in root.iter(f"{SVG}g") if g.get("id") == "axes_1")
    highest = min(y for name in watched if not name.endswith("perplexity") for _, y in line(root, name))
    named = [t for t in panel.iter(f"{SVG}text") if (t.text or "").partition(" ")[0] in watched]
    assert len(named) == len([name for name in watched if not name.endswith("perplexity")])
    assert max(float(t.get("y", "nan")) for t in named) < highest
    assert min(float(t.get("y", "nan")) for t in named) > 12


def test_pens_differ_without_colour_and_are_seen_on_white() -> None:
    every = [pen(group, i) for group in (WARM, COLD) for i in range(16)]
    assert len({(p.colour, p.marker, p.dash) for p in every}) == 32
    for group in (WARM, COLD):
        assert len({(p.marker, p.dash) for p in (pen(group, i) for i in range(4))}) == 4
    assert {p.dash for p in every[:16]}.isdisjoint(p.dash for p in every[16:])
    for colour in {p.colour for p in every}:
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        # WCAG 2.2, 1.4.11: at least 3:1 for what a picture is understood by.
        assert 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05) >= 3, colour


def test_no_window_and_nothing_loaded_until_something_is_drawn(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, core.plots as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.curves(pathlib.Path(sys.argv[1]), [{'step': 1, 'loss': 1.0}])\n"
        "assert 'matplotlib.figure' in sys.modules\n"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "losses.svg").exists()
