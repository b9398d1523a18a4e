"""Estimates are medians of what was measured, scaled by weights and records, and there is none where nothing was."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.store import jobs, runs
from api.store.records import Run
from api.store.runs import Cost, Estimate
from api.store.session import Database
from api.store.tables import ApiKey
from core.spec.cost import Work, work
from core.spec.job import JobSpec, parse

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

# A second for training, half a one for scoring, and two for the rest.
COST = Cost(
    device="cpu: x",
    method="ascent",
    optimizer="adamw",
    parameters=1_000_000,
    rows_trained=100,
    train_seconds=1.0,
    rows_scored=50,
    score_seconds=0.5,
    seconds=3.5,
    memory_bytes=600_000_000,
    idle_bytes=500_000_000,
)
Ask = Callable[..., Estimate | str]


@pytest.fixture
def ran(database: Database, spec: JobSpec, key: ApiKey) -> Callable[..., None]:
    """Enter runs, the oldest first."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    times = (start + timedelta(minutes=minute) for minute in range(10_000))

    def enter(*costs: Cost) -> None:
        with database.transaction() as session:
            for cost in costs:
                job = jobs.create(session, spec, key_id=key.id)[0]
                session.add(Run(job_id=job.id, at=next(times), **vars(cost)))

    return enter


@pytest.fixture
def ask(database: Database) -> Ask:
    def asked(**changes: Any) -> Estimate | str:
        request = {
            "method": "ascent",
            "optimizer": "adamw",
            "parameters": 1_000_000,
            "rows_trained": 100,
            "rows_scored": 50,
        }
        with database.reading() as session:
            return runs.estimate(session, **{**request, **changes})

    return asked


def test_the_same_again_costs_the_same(ran: Callable[..., None], ask: Ask) -> None:
    ran(COST)
    assert ask() == Estimate("cpu: x", 1.0, 0.5, 3.5, 600_000_000, 1)


def test_cost_grows_with_records_and_with_weights(ran: Callable[..., None], ask: Ask) -> None:
    ran(COST)
    assert ask(rows_trained=400, rows_scored=100) == Estimate("cpu: x", 4.0, 1.0, 7.0, 600_000_000, 1)
    # Memory grows by what the model took, not by what an engine holds anyhow.
    assert ask(parameters=2_000_000) == Estimate("cpu: x", 2.0, 1.0, 7.0, 700_000_000, 1)
    nothing_trained = ask(rows_trained=0)
    assert isinstance(nothing_trained, Estimate)
    assert (nothing_trained.train_seconds, nothing_trained.seconds) == (0.0, 2.5)


def test_nothing_is_said_where_nothing_comparable_was_measured(ran: Callable[..., None], ask: Ask) -> None:
    assert "No run was measured" in str(ask())
    ran(COST)
    assert "No run was measured" in str(ask(parameters=11_000_000))
    assert "No run was measured" in str(ask(parameters=90_000))
    assert "not known" in str(ask(parameters=None))


def test_runs_of_the_method_count_before_those_of_others_and_of_the_size_before_those_of_others(
    ran: Callable[..., None], ask: Ask
) -> None:
    ran(replace(COST, method="npo", train_seconds=9.0))
    other = ask()
    assert isinstance(other, Estimate)
    assert other.train_seconds == 9.0
    ran(replace(COST, parameters=2_000_000, train_seconds=6.0))
    larger = ask()
    assert isinstance(larger, Estimate)
    assert (larger.train_seconds, larger.runs) == (3.0, 1)
    ran(COST)
    own = ask()
    assert isinstance(own, Estimate)
    assert (own.train_seconds, own.runs) == (1.0, 1)


def test_it_is_the_median_of_the_newest_on_the_newest_device(ran: Callable[..., None], ask: Ask) -> None:
    ran(*[replace(COST, train_seconds=50.0)] * 30)
    ran(*[replace(COST, train_seconds=float(n)) for n in (1, 2, 3, 4, 100)] * 4)
    newest = ask()
    assert isinstance(newest, Estimate)
    assert (newest.train_seconds, newest.runs) == (3.0, runs.NEWEST)
    ran(replace(COST, device="cuda: y", train_seconds=0.1))
    moved = ask()
    assert isinstance(moved, Estimate)
    assert (moved.device, moved.train_seconds, moved.runs) == ("cuda: y", 0.1, 1)


def test_memory_is_read_off_runs_with_the_same_optimizer(ran: Callable[..., None], ask: Ask) -> None:
    ran(replace(COST, optimizer="sgd", memory_bytes=520_000_000), COST, COST)
    for optimizer, expected in (("sgd", 520_000_000), ("adamw", 600_000_000), ("lion", 600_000_000)):
        found = ask(optimizer=optimizer)
        assert isinstance(found, Estimate)
        assert found.memory_bytes == expected


@pytest.mark.parametrize(
    ("method", "training", "rows", "steps", "expected"),
    [
        ("GA", {"epochs": 3, "batch_size": 4}, {"forget": 10}, None, Work(8 * 4, 20)),
        ("NPO", {"steps": 7, "batch_size": 2}, {"forget": 10, "retain": 30}, None, Work(7 * 2 * 2, 80)),
        ("NPO", {"steps": 7, "batch_size": 2}, {"forget": 10, "retain": 30}, 3, Work(3 * 2 * 2, 80)),
    ],
)
@pytest.mark.usefixtures("database")
def test_work_is_counted_in_records(
    method: str, training: dict[str, Any], rows: dict[str, int], steps: int | None, expected: Work
) -> None:
    data = {name: {"source": "upload", "dataset": f"ds_{name:0>8}"} for name in rows}
    spec = parse({"model": "mdl_00000000", "data": data, "method": method, "training": training})
    assert work(spec, rows, steps) == expected
