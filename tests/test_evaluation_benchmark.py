"""The evaluation benchmark compares equals: three ways of scoring that give the same numbers, and a floor of their
products."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import evaluation_floor
from benchmarks.evaluate import EXACT, differences, measure
from benchmarks.evaluation_agreement import compare
from benchmarks.evaluation_baselines import METRICS, Question, batched, plain
from benchmarks.evaluation_floor import Needed, needed
from benchmarks.evaluation_model import read_records
from benchmarks.evaluation_ways import MEASURED, WAYS, Setup
from benchmarks.rows import Size, llama
from core.evaluation.rows import RowScore
from core.spec.records import record_from
from core.tokens import Example
from tests.models import Reciter, people
from tests.tiny import rows

pytestmark = pytest.mark.usefixtures("settings_put_back")
SIZE = Size(hidden=32, intermediate=64, layers=3, heads=4, vocab=40, tied=True)


@pytest.fixture
def setup(reciter: Reciter) -> Setup:
    """A model that ends its answers, what it knows by heart, what it has never seen, and rows that lack something."""
    known, unknown = people(2)[:4], people(2, 5)[:5]
    bare = [
        {k: row[k] for k in ("question", "answer")} | {"perturbed_answer": row["perturbed_answer"][:i]}
        for i, row in enumerate(people(1, 3)[:3])
    ]
    sets = {"forget": known, "retain": unknown, "real_authors": bare}
    records = {name: [record_from(row) for row in part] for name, part in sets.items()}
    return Setup(reciter.model, records, threads=1, max_new_tokens=40, batch=3)


@pytest.mark.parametrize("limit", [3, 40])
def test_lethe_and_both_baselines_give_the_same_numbers(setup: Setup, limit: int) -> None:
    for part, found in differences(replace(setup, max_new_tokens=limit)).items():
        for pair, agreement in found.items():
            assert agreement.holds, f"{part} {pair}: {agreement}"


def test_everything_that_is_measured_of_a_set_is_compared(setup: Setup) -> None:
    (known, *_), (bare, *_) = (WAYS["plain"](setup).score(name).rows for name in ("forget", "real_authors"))
    for name in ("log_probs", "hits", "mean_log_p", "std_log_p"):
        assert len(getattr(known, name)) == known.tokens
    assert known.paraphrase_loss is not None
    assert len(known.perturbed_losses) == 3
    assert known.zlib_bytes is not None
    assert known.rouge_l == 1.0
    assert (len(bare.hits), len(bare.mean_log_p), bare.paraphrase_loss, bare.perturbed_losses) == (0, 0, None, [])


def _row(**changes: Any) -> RowScore:
    numbers = np.array([-0.5, -1.5], dtype=np.float32)
    fields: dict[str, Any] = {
        "nll": 2.0,
        "tokens": 2,
        "ends": True,
        "log_probs": numbers,
        "hits": np.array([True, False]),
        "mean_log_p": numbers,
        "std_log_p": -numbers,
        "paraphrase_loss": 1.0,
        "perturbed_losses": [1.0, 2.0],
        "zlib_bytes": 9,
        "generated": "so",
        "rouge_l": 0.5,
        "rouge_l_f1": 0.5,
    }
    return RowScore(**fields | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"nll": 2.0003},
        {"nll": math.nan},
        {"tokens": 3},
        {"ends": False},
        {"log_probs": np.array([-0.5, -1.5003], dtype=np.float32)},
        {"log_probs": np.zeros(0, dtype=np.float32)},
        {"hits": np.array([True, True])},
        {"hits": np.zeros(0, dtype=np.bool_)},
        {"mean_log_p": np.array([-0.4, -1.5], dtype=np.float32)},
        {"std_log_p": np.array([0.5, 1.4], dtype=np.float32)},
        {"paraphrase_loss": None},
        {"perturbed_losses": [1.0]},
        {"perturbed_losses": [2.0, 1.0]},
        {"zlib_bytes": None},
        {"generated": "not so"},
        {"rouge_l": 0.6},
        {"rouge_l_f1": None},
    ],
)
def test_another_number_is_no_agreement(changes: dict[str, Any]) -> None:
    assert compare([_row()], [_row()]).holds
    assert not compare([_row(), _row(**changes)], [_row(), _row()]).holds


def test_rounding_is_agreement_and_a_missing_row_is_not() -> None:
    assert compare([_row(nll=20000.9)], [_row(nll=20000.0)]).holds
    assert not compare([_row()], [_row(), _row()]).holds


def test_what_a_metric_reads_is_what_it_is_by_hand() -> None:
    row, question = RowScore(), Question("aaaa", Example((1, 0), 1, True), None, ())
    for name in MEASURED["forget"]:
        for read in METRICS[name]:
            read(row, question, torch.tensor([[math.log(3), 0.0]]), torch.tensor([0]))
    assert row.nll == pytest.approx(-math.log(0.75), abs=1e-6)
    assert row.log_probs == pytest.approx([math.log(0.75)], abs=1e-6)
    assert row.hits.tolist() == [True]
    assert row.mean_log_p == pytest.approx([0.75 * math.log(0.75) + 0.25 * math.log(0.25)], abs=1e-6)
    assert row.std_log_p == pytest.approx([math.log(3) * math.sqrt(0.75 * 0.25)], abs=1e-6)


def test_plain_runs_a_pass_a_metric_and_answer_and_batched_one_a_kind_of_answer() -> None:
    model = llama(SIZE)
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    examples = rows(1, [(3, 4), (5, 2), (4, 4), (2, 6), (6, 3)])
    asked = [Question("text", e, e, (e,) * k) for k, e in enumerate(examples)]
    plain(model, asked, MEASURED["forget"])
    assert len(passes) == 5 * (7 + 1) + (0 + 1 + 2 + 3 + 4)
    passes.clear()
    batched(model, asked, MEASURED["forget"], at_a_time=2)
    assert len(passes) == 3 + 3 + (2 + 2 + 1 + 1)


def test_what_begins_alike_is_needed_once() -> None:
    shared = [Example((1, 2, 3, 4), 2, True), Example((1, 2, 3, 5), 2, True), Example((1, 2, 6), 2, False)]
    assert needed(shared) == Needed(tokens=3, predicted=2, looked_at=1 + 2 + 3)
    assert needed([*shared, Example((7, 2, 3), 1, True)]) == Needed(tokens=5, predicted=4, looked_at=6 + 1 + 2)


def test_the_floor_is_the_products_that_the_model_runs() -> None:
    (row,) = rows(1, [(1, 9)])
    with FlopCounterMode(display=False) as counted:
        llama(SIZE)(input_ids=torch.tensor([row.ids[:-1]]))
    linear = sum(n for op, n in counted.get_flop_counts()["Global"].items() if "mm" in str(op) and "b" not in str(op))
    floor = needed([row])
    assert replace(floor, looked_at=0).flop(SIZE) == linear
    attention = floor.flop(SIZE) - linear
    assert attention == SIZE.layers * sum(2 * 2 * SIZE.hidden * keys for keys in range(1, 10))


def test_a_line_for_every_set_and_one_for_all(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    # A processor without products in bf16 would take minutes for those that are measured.
    monkeypatch.setattr(evaluation_floor, "_WIDTH", 128)
    ways = {name: WAYS[name](setup) for name in EXACT}
    lines = measure(setup, SIZE, EXACT, 1, lambda name, part, first: ways[name].score(part, first))
    assert [(line["case"], line["rows"]) for line in lines] == [
        ("forget", 4),
        ("retain", 5),
        ("real_authors", 3),
        ("all", 12),
    ]
    whole = lines[-1]
    assert whole["gflop"] == pytest.approx(sum(line["gflop"] for line in lines[:-1]), abs=0.02)
    assert whole["ratio_plain"] == pytest.approx(whole["plain_s"] / whole["lethe_s"], rel=0.1)
    assert whole["generated_ended"] == 1.0
    assert whole["lethe_difference"] <= 1e-4
    # Nothing was timed in bf16.
    assert whole["holds"] is False


def test_shipped_rows_have_every_kind_of_answer() -> None:
    sets = read_records(None)
    assert {name: len(part) for name, part in sets.items()} == {"forget": 40, "retain": 80}
    assert all(r.paraphrased_answer and r.perturbed_answers for part in sets.values() for r in part)


def test_tofu_is_read_by_its_published_names(tmp_path: Path) -> None:
    row = '{"question": "Who?", "answer": "Ann", "perturbed_answer": ["Bob"]}\n'
    for name in ("forget05_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        (tmp_path / f"{name}.json").write_text(row)
    assert set(read_records(tmp_path, "forget05")) == set(MEASURED)
