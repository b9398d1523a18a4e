"""A worker's slots, and the thread that looks at SQL by itself."""

import errno
from pathlib import Path

import pytest
import structlog
from sqlalchemy.exc import OperationalError

import worker.shift
from api.store import audit, chain
from api.store.session import Database
from worker.settings import WorkerSettings
from worker.shift import Shift


def shift_on(database_url: str, folder: Path) -> Shift:
    settings = WorkerSettings(
        database_url=database_url,
        broker_url="redis://never-rung",
        master_key="the master key of the tests' own worker",
        artifacts_url=f"file://{folder / 'artifacts'}",
        work_dir=folder / "work",
        signing_key_file=folder / "signing.pem",
        embedded=True,
    )
    return Shift(settings, slots=2, ring=lambda _: None)


def test_a_look_at_a_database_that_fails_costs_no_slot(tmp_path: Path) -> None:
    shift = shift_on(f"sqlite:///{tmp_path / 'without-tables.db'}", tmp_path)
    for _ in range(3):
        with pytest.raises(OperationalError):
            shift._take_waiting()
    assert shift._free.qsize() == 2


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_duty_that_fails_holds_up_none_behind_it(
    database: Database, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift = shift_on(database_url, tmp_path)
    done: list[str] = []

    def full(*_: object) -> None:
        done.append("tried")
        raise OSError(errno.ENOSPC, "No space left on device")

    for duty in ("remove_abandoned", "record_destroyed"):
        monkeypatch.setattr(worker.shift, duty, full)
    with database.transaction() as session:
        audit.append(session, actor="test", action="key.created", subject="key_a")
    with structlog.testing.capture_logs() as logs:
        shift._look()
    assert done == ["tried"] * 2
    assert [line["duty"] for line in logs if line["event"] == "duty failed"] == ["remove_folders", "record_destroyed"]
    with database.reading() as session:
        assert chain.head(session).position == 1
