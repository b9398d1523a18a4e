"""Which rows a step sees is a function of seed, set and step alone, and every pass over a set sees each row once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.batches import by_length, rows_of_step


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 1000), st.integers(0, 3))
def test_every_epoch_is_a_permutation(rows: int, batch: int, seed: int, stream: int) -> None:
    epochs = 3
    steps = -(-epochs * rows // batch)
    seen = [row for step in range(steps) for row in rows_of_step(step, rows, batch, seed=seed, stream=stream)]
    for epoch in range(epochs):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_a_step_does_not_depend_on_what_was_asked_before() -> None:
    forwards = [rows_of_step(step, 30, 7, seed=5, stream=1) for step in range(40)]
    backwards = [rows_of_step(step, 30, 7, seed=5, stream=1) for step in reversed(range(40))]
    assert forwards == backwards[::-1]


def test_seeds_streams_and_epochs_have_orders_of_their_own() -> None:
    orders = {
        tuple(rows_of_step(epoch, 50, 50, seed=seed, stream=stream))
        for seed in range(3)
        for stream in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 27


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 200))
def test_batches_hold_every_item_once_and_stay_in_their_budget(lengths: list[int], budget: int) -> None:
    batches = by_length(list(enumerate(lengths)), lambda item: item[1], budget)
    assert sorted(item for batch in batches for item in batch) == list(enumerate(lengths))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(length for _, length in batch) <= budget
