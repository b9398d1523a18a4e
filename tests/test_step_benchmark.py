"""The step benchmark compares equals: three pipelines that make the same update, and a floor of the step's products."""

import pytest
import torch

from benchmarks.baselines import CASES
from benchmarks.floor import Attention, Linear, products
from benchmarks.pipelines import Setup
from benchmarks.rows import Size, llama, step_rows
from benchmarks.step import CHECK_RATES, differences
from tests.tiny import rows

pytestmark = pytest.mark.usefixtures("settings_put_back")
SIZE = Size(hidden=32, intermediate=64, layers=3, heads=4, vocab=40, tied=True)
SETS = {
    "forget": rows(1, [(5, 7), (3, 12), (9, 4), (4, 9), (6, 2)]),
    "retain": rows(2, [(8, 3), (2, 11), (7, 7), (5, 10), (3, 1), (4, 6)]),
}


@pytest.mark.parametrize("optimizer", CHECK_RATES)
@pytest.mark.parametrize("case", CASES)
def test_lethe_and_both_baselines_make_the_same_update(case: str, optimizer: str) -> None:
    setup = Setup(case, SETS, SIZE, width=32, threads=torch.get_num_threads(), lr=CHECK_RATES[optimizer])
    for pair, (losses, weights) in differences(setup, optimizer, steps=3).items():
        assert losses <= 1e-5, pair
        assert weights <= 1e-2, pair


def test_the_floor_is_six_operations_a_weight_and_token_it_meets() -> None:
    sets = step_rows(SETS, 0, 4)
    wanted = products(SIZE, CASES["graddiff_1x4"], sets)
    tokens = sum(len(r.ids) for part in sets.values() for r in part)
    answers = sum(r.answer_tokens for part in sets.values() for r in part)
    layers = llama(SIZE).model.layers
    weights = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
    linear = sum(p.flop for p in wanted if isinstance(p, Linear))
    assert linear == 6 * (weights * tokens + SIZE.vocab * SIZE.hidden * answers)
    attention = sum(p.flop for p in wanted if isinstance(p, Attention))
    assert attention == 12 * SIZE.layers * SIZE.hidden * sum(len(r.ids) ** 2 for part in sets.values() for r in part)
