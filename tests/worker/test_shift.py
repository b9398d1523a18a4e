"""A worker's slots, and the thread that looks at SQL by itself."""

from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from worker.settings import WorkerSettings
from worker.shift import Shift


def test_a_look_at_a_database_that_fails_costs_no_slot(tmp_path: Path) -> None:
    settings = WorkerSettings(
        database_url=f"sqlite:///{tmp_path / 'without-tables.db'}",
        broker_url="redis://never-rung",
        master_key="the master key of the tests' own worker",
        artifacts_url=f"file://{tmp_path / 'artifacts'}",
        work_dir=tmp_path / "work",
        signing_key_file=tmp_path / "signing.pem",
        embedded=True,
    )
    shift = Shift(settings, slots=2, ring=lambda _: None)
    for _ in range(3):
        with pytest.raises(OperationalError):
            shift._take_waiting()
    assert shift._free.qsize() == 2
