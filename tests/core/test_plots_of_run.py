"""The plots of a run and of an evaluation: of rows in memory or of those that were left, the same pictures."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from core.evaluation.rows import RowScore
from core.plots.of_run import distributions
from tests.core.evaluating import SPEC, report_of, request, sets
from tests.core.recording import QUICK, Recorder, carry_out, interrupted
from tests.core.scored import scored
from tests.models import Reciter

PLOTTED = QUICK | {"plots": True, "watch_every": 1, "watch_rows": 2}


def pictures(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((out / "plots").glob("*.svg"))}


def words(file: Path) -> str:
    """Everything that is written in a picture, which must be well-formed."""
    return " ".join("".join(ET.fromstring(file.read_text()).itertext()).split())


@pytest.fixture(scope="module")
def undisturbed(unlearnt: Reciter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of three steps leaves."""
    out = tmp_path_factory.mktemp("undisturbed")
    heard = Recorder()
    carry_out(unlearnt.spec(training={"steps": 3, "batch_size": 2}, evaluation=PLOTTED), out, heard)
    assert heard.events[-1]["plots"] == [f"plots/{name}" for name in pictures(out)]
    return out


def test_a_run_draws_losses_looks_and_both_times_of_each_set(undisturbed: Path) -> None:
    distributions = [f"distribution-{name}.svg" for name in ("min_k", "probability", "rouge_l")]
    assert list(pictures(undisturbed)) == [*distributions, "looks.svg", "losses.svg"]
    for name in distributions:
        said = words(undisturbed / "plots" / name)
        for label, rows in (("forget", 6), ("retain", 9)):
            assert f"{label}, before: {rows} rows" in said
            assert f"{label}, after: {rows} rows" in said
        assert "holdout" not in said
    assert "delivered: step 3" in words(undisturbed / "plots" / "looks.svg")


def test_a_resumed_run_draws_the_same(undisturbed: Path, unlearnt: Reciter, tmp_path: Path) -> None:
    wanted = unlearnt.spec(training={"steps": 3, "batch_size": 2}, evaluation=PLOTTED)
    interrupted(wanted, tmp_path, 2)
    assert not pictures(tmp_path)
    carry_out(wanted, tmp_path)
    again, first = pictures(tmp_path), pictures(undisturbed)
    assert again.keys() == first.keys()
    assert [name for name in first if again[name] != first[name]] == []


def test_where_none_are_wanted_there_are_none_and_rows_need_not_be_kept(unlearnt: Reciter, tmp_path: Path) -> None:
    wanted = unlearnt.spec(training={"steps": 1}, evaluation=QUICK | {"plots": False})
    carry_out(wanted, tmp_path / "none")
    assert not (tmp_path / "none" / "plots").exists()
    wanted = unlearnt.spec(training={"steps": 1}, evaluation=QUICK | {"rows": False})
    carry_out(wanted, tmp_path / "drawn")
    assert not (tmp_path / "drawn" / "rows").exists()
    assert "forget, before: 6 rows" in words(tmp_path / "drawn" / "plots" / "distribution-probability.svg")


def test_rows_alone_draw_what_the_evaluation_drew(unlearnt: Reciter, tmp_path: Path) -> None:
    evaluation = {"evaluation": SPEC["evaluation"] | {"plots": True}}
    spec = request(tmp_path / "spec.json", **evaluation)
    of = (unlearnt.model, *sets(unlearnt, tmp_path), "--before", unlearnt.model)
    report_of(tmp_path / "measured", *of, "--spec", spec)
    report_of(tmp_path / "again", "--rows", tmp_path / "measured", "--spec", spec)
    assert pictures(tmp_path / "again") == pictures(tmp_path / "measured")
    said = words(tmp_path / "again" / "plots" / "distribution-min_k.svg")
    for label in ("forget, before", "holdout, before", "retain, before", "forget, after", "holdout, after"):
        assert label in said


def test_rows_without_a_score_are_not_drawn(tmp_path: Path) -> None:
    texts = [scored([-1.0, -3.0]), scored([-2.0])]
    assert [file.name for file in distributions(tmp_path, {"after": {"forget": texts}})] == [
        "distribution-probability.svg",
        "distribution-min_k.svg",
    ]
    assert distributions(tmp_path, {"after": {"forget": [RowScore()], "retain": []}}) == []
    assert distributions(tmp_path, {}) == []
    # One set has texts and one has none: one panel.
    said_something = [scored([-1.0], rouge_l=0.5)]
    distributions(tmp_path, {"after": {"forget": texts, "retain": said_something}})
    said = words(tmp_path / "distribution-rouge_l.svg")
    assert "retain, after: 1 row, median 0.5" in said
    assert "forget" not in said
    # The mean of the lowest 40%, one at least.
    lowest = [float(np.sort([-1.0, -3.0])[0]), -2.0]
    assert f"forget, after: 2 rows, median {np.median(lowest):.3g}" in words(tmp_path / "distribution-min_k.svg")
