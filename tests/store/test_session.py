"""Transactions commit or roll back as a whole, readers may not write, and writers wait instead of failing."""

import contextlib
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import func, make_url, select
from sqlalchemy.exc import DBAPIError

from api.settings import Settings
from api.store import audit
from api.store.errors import InvalidSetting
from api.store.records import AuditEntry
from api.store.session import Database, now, open_database
from api.store.settings import StoreSettings, load, slips
from tests.parallel import at_once
from worker.settings import WorkerSettings


def count(database: Database) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(AuditEntry)) or 0


def test_an_exception_undoes_the_whole_transaction(database: Database) -> None:
    with contextlib.suppress(KeyError), database.transaction() as session:
        audit.append(session, actor="a", action="b", subject="c")
        session.flush()
        raise KeyError
    assert count(database) == 0


def test_a_reader_cannot_write(database: Database) -> None:
    with database.reading() as session:
        audit.append(session, actor="a", action="b", subject="c")
        with pytest.raises(DBAPIError):
            session.flush()
    with database.transaction() as session:
        audit.append(session, actor="a", action="b", subject="c")
    assert count(database) == 1


def test_writers_that_read_first_all_get_through(database: Database) -> None:
    def act(number: int) -> None:
        for _ in range(5):
            with database.transaction() as session:
                session.scalar(select(func.count()).select_from(AuditEntry))
                audit.append(session, actor=str(number), action="b", subject="c")

    at_once(8, act)
    assert count(database) == 40


def test_a_new_file_can_be_opened_by_many_at_once(tmp_path: Path) -> None:
    for attempt in range(5):
        url = f"sqlite:///{tmp_path}/{attempt}.db"

        def act(_: int, url: str = url) -> None:
            database = open_database(url)
            with database.transaction() as session:
                now(session)
            database.close()

        at_once(8, act)


def test_a_reader_waits_for_no_writer(database: Database) -> None:
    with database.transaction() as session:
        audit.append(session, actor="a", action="b", subject="c")
        session.flush()
        assert count(database) == 0
    assert count(database) == 1


def test_the_clock_is_utc_and_moves_within_a_transaction(database: Database) -> None:
    with database.reading() as session:
        first = now(session)
        assert abs(datetime.now(UTC) - first) < timedelta(seconds=5)
        while (second := now(session)) == first:
            pass
        assert timedelta(0) < second - first < timedelta(seconds=5)
        assert second.utcoffset() == timedelta(0)


@pytest.mark.parametrize("url", ["mysql://u:geheim@host/db", "sqlite://", "sqlite:///:memory:", "nothing", ""])
def test_an_unusable_url_says_what_is_allowed_and_no_password(url: str) -> None:
    with pytest.raises(InvalidSetting, match="sqlite:////absolute") as raised:
        open_database(url)
    assert raised.value.param == "database_url"
    assert "geheim" not in raised.value.message


def test_settings_are_documented_and_keep_passwords_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("database_url", "broker_url", "master_key", "artifacts_url"):
        assert StoreSettings.model_fields[name].description
        monkeypatch.setenv(f"LETHE_{name.upper()}", f"scheme://user:geheim@host/{name}")
    settings = StoreSettings()
    assert settings.broker_url == "scheme://user:geheim@host/broker_url"
    assert "geheim" not in repr(settings)


def test_a_setting_that_is_misspelt_is_not_taken_for_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {f"LETHE_{name.upper()}" for kind in (Settings, WorkerSettings) for name in kind.model_fields}
    tools = {"LETHE_API_KEY", "LETHE_URL", "LETHE_PORT", "LETHE_BIND", "LETHE_MODELS", "LETHE_SIGNING_KEY"}
    for kind in (Settings, WorkerSettings):
        assert list(slips(kind, ours | tools)) == [], "a setting of another part is no slip"
    monkeypatch.setenv("LETHE_FOUREYES", "true")
    monkeypatch.setenv("LETHE_RETENTON_DAYS", "3")
    with pytest.raises(InvalidSetting, match=r"^LETHE_FOUREYES is no setting: did you mean LETHE_FOUR_EYES\?$"):
        load(Settings)
    with pytest.raises(InvalidSetting, match=r"^LETHE_RETENTON_DAYS .* LETHE_RETENTION_DAYS\?$"):
        load(WorkerSettings)


def test_a_snapshot_sees_one_moment_and_cannot_write(database: Database) -> None:
    with database.snapshot() as session:
        before = session.scalar(select(func.count()).select_from(AuditEntry))
        with database.transaction() as other:
            audit.append(other, actor="a", action="b", subject="c")
        assert session.scalar(select(func.count()).select_from(AuditEntry)) == before
        audit.append(session, actor="a", action="b", subject="c")
        with pytest.raises(DBAPIError):
            session.flush()
    assert count(database) == 1


def test_a_connection_lost_while_it_rested_is_replaced(postgresql_url: str) -> None:
    database = open_database(postgresql_url)
    assert count(database) == 0
    with database.transaction() as session:
        audit.append(session, actor="a", action="b", subject="c")
    with psycopg.connect(make_url(postgresql_url).set(drivername="postgresql").render_as_string(False)) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    time.sleep(1.1)
    assert count(database) == 1
    with database.transaction() as session:
        audit.append(session, actor="a", action="b", subject="c")
    database.close()
