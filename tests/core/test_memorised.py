"""Real models: one that memorised the forget set is told from one that never saw it, and one that was destroyed does
not pass for one that forgot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from core.data import Inputs
from core.evaluation.whole import evaluate, recompute
from core.report.schema import Measured, Measurement
from core.spec.job import parse
from core.spec.metrics import info
from tests import tiny
from tests.core.recording import carry_out
from tests.memorised import ROWS, Memorised, train_memorised

SCORES = ("loss", "zlib", "min_k", "min_k_plus_plus")
UNSEEN = ("retrained", "again")
Metrics = Mapping[str, Measurement]


@pytest.fixture(scope="session")
def memorised(tmp_path_factory: pytest.TempPathFactory) -> Memorised:
    """The models and their sets, trained once."""
    return train_memorised(tmp_path_factory.mktemp("memorised"))


@pytest.fixture(scope="session")
def metrics(memorised: Memorised, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metrics]:
    """All that is measured of each model, against the one retrained; `itself` is that one, from its rows alone."""
    out = tmp_path_factory.mktemp("scored")
    found = {"retrained": _measured(memorised, memorised.retrained, out / "retrained", str(memorised.retrained))}
    for name, model in (("original", memorised.original), ("again", memorised.again)):
        found[name] = _measured(memorised, model, out / name, {"rows": str(out / "retrained")})
    asked = {"evaluation": {"bootstrap": 200, "plots": False}}
    report = recompute(out / "retrained", asked, out, retrained=out / "retrained", emit=tiny.silent)
    return found | {"itself": report.after}


def _measured(memorised: Memorised, model: Path, out: Path, retrained: Any) -> Metrics:
    out.mkdir()
    request = {
        "model": str(model),
        "data": memorised.data("forget", "retain", "holdout", "real_authors", "world_facts"),
        "method": "origin",
        "evaluation": {"max_new_tokens": 16, "bootstrap": 200, "plots": False, "retrained": retrained},
        "threads": 1,
    }
    return evaluate(parse(request), Inputs(), out, emit=tiny.silent, stop=tiny.STOP).after


def of(metrics: Metrics, name: str) -> Measured:
    found = metrics[name]
    assert isinstance(found, Measured), f"{name}: {found}"
    return found


def test_each_recites_what_it_was_trained_on(metrics: dict[str, Metrics]) -> None:
    for name, own in metrics.items():
        for what in ("retain.exact_memorization", "retain.rouge_l", "real_authors.rouge_l"):
            assert of(own, what).value > 0.97, (name, what)
        unseen = [of(own, f"{split}.rouge_l").value for split in ("forget", "holdout")]
        assert unseen[1] < 0.7, name
        assert (unseen[0] > 0.97) == (name == "original"), name


@pytest.mark.parametrize("score", SCORES)
def test_what_was_memorised_is_told_from_what_was_never_seen(score: str, metrics: dict[str, Metrics]) -> None:
    remembered = of(metrics["original"], f"membership.{score}.auc")
    assert remembered.rows == 2 * ROWS
    assert remembered.low is not None
    assert remembered.value >= remembered.low > 0.95
    assert of(metrics["original"], f"membership.{score}.tpr").value > 0.9
    for name in UNSEEN:
        auc, tpr = (of(metrics[name], f"membership.{score}.{what}") for what in ("auc", "tpr"))
        assert auc.value == pytest.approx(0.5, abs=0.1), name
        assert auc.low is not None
        assert auc.high is not None
        # Of a score by chance it is four standard errors wide, which are 0.029 each with two hundred rows of either.
        assert 0.05 < auc.high - auc.low < 0.2, name
        assert tpr.value < 0.1, name


def test_forget_quality_is_1_of_the_retrained_and_none_of_the_original(metrics: dict[str, Metrics]) -> None:
    quality, distance = "tofu.forget_quality", "tofu.ks_distance"
    for name in ("retrained", "itself"):
        assert of(metrics[name], quality).value == 1
    assert of(metrics["original"], quality).value < 1e-3
    # Retrained from another seed it is neither the same nor told apart.
    assert 1e-3 < of(metrics["again"], quality).value <= 1
    assert 0 < of(metrics["again"], distance).value < 0.2 < 0.4 < of(metrics["original"], distance).value


def test_privleak_is_0_of_the_retrained_and_near_minus_100_of_the_original(metrics: dict[str, Metrics]) -> None:
    assert of(metrics["retrained"], "muse.privleak").value == pytest.approx(0, abs=0.1)
    assert metrics["itself"]["muse.privleak"] == Measured(value=0, rows=2 * ROWS, low=0, high=0)
    assert -100 <= of(metrics["original"], "muse.privleak").value < -80
    again = of(metrics["again"], "muse.privleak")
    assert abs(again.value) < 40
    assert again.low is not None
    assert again.high is not None
    assert again.low < 0 < again.high


def test_model_utility_is_the_harmonic_mean_of_nine(metrics: dict[str, Metrics]) -> None:
    for name, own in metrics.items():
        nine = [
            of(own, f"{split}.{metric}").value
            for split in ("retain", "real_authors", "world_facts")
            for metric in ("probability", "rouge_l", "truth_ratio")
        ]
        utility = of(own, "tofu.model_utility")
        assert utility.value == pytest.approx(9 / sum(1 / value for value in nine)), name
        assert utility.rows == ROWS + 12 + 7
        assert 0.4 < utility.value < 1, "it knows what it is asked"


def test_a_model_destroyed_by_ascent_alone_does_not_pass(memorised: Memorised, tmp_path: Path) -> None:
    request = {
        "model": str(memorised.original),
        "data": memorised.data("forget", "retain", "holdout", rows=40),
        "method": {"name": "ascent", "retain": "none"},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "training": {"steps": 20, "batch_size": 16},
        "evaluation": {"max_new_tokens": 16, "bootstrap": 100, "plots": False},
        "profile": "erasure",
        # The profile's own asks how often three words come again, and babble may be one long word.
        "gates": [{"metric": "forget.entropy", "relative_to": "before", "at_least": 0.5}],
        "threads": 1,
    }
    verdict = carry_out(request, tmp_path).report.verdict
    assert verdict.verdict == "not_passed"
    outcomes = {result.gate["metric"]: result.outcome for result in verdict.gates}
    assert {"unmeasured"}.isdisjoint(outcomes.values())
    failed = {name for name, outcome in outcomes.items() if outcome == "failed"}
    assert failed >= {"retain.probability", "retain.rouge_l", "forget.entropy"}
    assert verdict.reasons == [result.reason for result in verdict.gates if result.outcome == "failed"]
    # By the gates on forgetting alone it would look as if it had forgotten, also under attack.
    held = {name for name in outcomes.keys() - failed if info(name).about == "forgetting"}
    assert held >= {"forget.rouge_l", "forget.extraction_strength", "relearn.rouge_l", "quantize_int4.rouge_l"}
