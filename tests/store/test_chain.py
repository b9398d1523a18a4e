"""The audit log's chain: whole under any number of writers and sealers, and whatever is done to the table is found and
named. The attacker of these tests has the database, drops its triggers, and has not the signing key."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from api.store import audit, chain
from api.store.chain import Head, link
from api.store.chain_check import LISTED, Claim, Verified, verify
from api.store.session import Database, open_database
from core.report.heads import is_signed, sign_head
from core.report.keys import new_key, private_key

KEY = new_key()


def note(database: Database, *subjects: str) -> None:
    with database.transaction() as session:
        for subject in subjects:
            audit.append(
                session, actor="prn_a", action="thing.done", subject=subject, facts={"n": 0.1, "größe": [None]}
            )


def sealed(database: Database, *, sign: bool = False) -> Head:
    with database.transaction() as session:
        end = chain.seal(session)
        if sign:
            assert chain.sign_head(session, end, signature)
        return end


def signature(head: Head, at: datetime) -> str:
    return sign_head(head.position, head.hash, at, KEY)


def checked(database: Database, *claims: Claim, key: bytes = KEY) -> Verified:
    public = private_key(key).public_key()
    with database.snapshot() as session:
        return verify(
            session,
            claims=claims,
            signed=lambda head: is_signed(head.position, head.hash, head.at, head.signature, public),
        )


@pytest.fixture
def log(database: Database) -> Database:
    """Ten sealed entries, with a signed head over the last."""
    note(database, *(f"job_{number}" for number in range(10)))
    sealed(database, sign=True)
    return database


def attack(database: Database, *statements: str) -> None:
    """Change the table as whoever has the database can."""
    if database.engine.dialect.name == "postgresql":
        off = [f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in ("audit", "audit_heads")]
        on = [f"ALTER TABLE {table} ENABLE TRIGGER USER" for table in ("audit", "audit_heads")]
    else:
        with database.reading() as session:
            kept = session.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
        off, on = [f"DROP TRIGGER {trigger.name}" for trigger in kept], [trigger.sql for trigger in kept]
    with database.transaction() as session:
        for statement in (*off, *statements, *on):
            session.connection().exec_driver_sql(statement)


def named(found: Verified) -> list[tuple[str, int, int | None]]:
    assert found.ok == (not found.findings)
    return [(finding.kind, finding.position, finding.entry) for finding in found.findings]


def test_what_was_noted_is_sealed_in_order_and_matches(log: Database) -> None:
    found = checked(log)
    assert (found.ok, found.entries, found.heads, found.unsealed) == (True, 10, 1, 0)
    note(log, "job_10")
    assert checked(log).unsealed == 1
    end = sealed(log)
    assert checked(log).head == end
    assert end.position == 11
    assert sealed(log) == end, "sealing again changes nothing"
    assert checked(log, Claim(11, end.hash, "a report")).ok


def test_an_empty_log_matches(database: Database) -> None:
    assert sealed(database) == Head(0, chain.BEGINNING)
    with database.transaction() as session:
        assert not chain.sign_head(session, chain.seal(session), signature)
    assert checked(database).ok


@pytest.mark.parametrize("column", ["at", "actor", "key_id", "action", "subject", "facts"])
def test_a_changed_entry_is_named(log: Database, column: str) -> None:
    value = {"at": "'2020-01-01 00:00:00+00:00'", "facts": "'{\"n\":0.2}'"}.get(column, "'prn_b'")
    attack(log, f"UPDATE audit SET {column} = {value} WHERE position = 4")
    assert named(checked(log)) == [("changed", 4, 4)]


def test_a_changed_entry_whose_hash_was_made_anew_breaks_the_next(log: Database) -> None:
    attack(log, "UPDATE audit SET actor = 'prn_b' WHERE position = 4")
    with log.snapshot() as session:
        entries = session.execute(chain.columns().order_by(chain.AuditEntry.position)).all()
    attack(log, f"UPDATE audit SET hash = '{link(entries[2].hash, 4, entries[3])}' WHERE position = 4")
    assert named(checked(log)) == [("changed", 5, 5)]


def test_a_chain_made_anew_from_some_entry_on_does_not_match_the_head(log: Database) -> None:
    attack(log, "UPDATE audit SET actor = 'prn_b' WHERE position = 4", "UPDATE audit SET position = NULL, hash = NULL")
    sealed(log)
    found = checked(log)
    assert named(found) == [("head", 10, None)]
    assert "made anew" in found.findings[0].message
    # And whoever signs the new chain without the key is found too.
    attack(log, "DELETE FROM audit_heads")
    assert checked(log).ok, "without heads nobody could tell"
    with log.transaction() as session:
        chain.sign_head(
            session, chain.head(session), lambda head, at: sign_head(head.position, head.hash, at, new_key())
        )
    assert named(checked(log)) == [("signature", 10, None)]


def test_a_removed_entry_is_named(log: Database) -> None:
    attack(log, "DELETE FROM audit WHERE position IN (4, 7, 8)")
    found = checked(log)
    assert named(found) == [("missing", 4, None), ("missing", 7, None)]
    assert found.findings[1].message == "Positions 7 to 8 are missing."


def test_a_gap_that_was_closed_is_named(log: Database) -> None:
    attack(log, "DELETE FROM audit WHERE position = 9", "UPDATE audit SET position = 9 WHERE position = 10")
    assert named(checked(log)) == [("changed", 9, 10), ("missing", 10, None)]


def test_a_tail_cut_off_does_not_reach_the_head(log: Database) -> None:
    end = sealed(log)
    attack(log, "DELETE FROM audit WHERE position > 7")
    found = checked(log)
    assert named(found) == [("missing", 8, None)]
    assert "Positions 8 to 10 are missing. They stood there by the head signed at" in found.findings[0].message
    attack(log, "DELETE FROM audit_heads")
    assert checked(log).ok
    assert named(checked(log, Claim(10, end.hash, "the report of job_1"))) == [("missing", 8, None)]


@pytest.mark.parametrize(("one", "other"), [(3, 8), (4, 5), (1, 10)])
@pytest.mark.parametrize("which", ["rows", "places"])
def test_two_swapped_entries_are_named(log: Database, one: int, other: int, which: str) -> None:
    column = {"rows": "subject", "places": "position"}[which]
    if which == "places":  # position and hash stay together on their row
        attack(
            log,
            f"UPDATE audit SET position = -1 WHERE id = {one}",
            f"UPDATE audit SET position = {one} WHERE id = {other}",
            f"UPDATE audit SET position = {other} WHERE id = {one}",
        )
        kinds = {(kind, position) for kind, position, _ in named(checked(log)) if kind != "head"}
        assert kinds == {("reordered", one), ("reordered", other)}
    else:
        attack(
            log,
            f"UPDATE audit SET {column} = 'job_{other - 1}' WHERE id = {one}",
            f"UPDATE audit SET {column} = 'job_{one - 1}' WHERE id = {other}",
        )
        assert named(checked(log)) == [("changed", one, one), ("changed", other, other)]


def test_an_inserted_entry_is_named(log: Database) -> None:
    row = "(id, at, actor, action, subject, facts, position, hash)"
    values = f"'2026-01-01 00:00:00+00:00', 'prn_x', 'a', 's', '{{}}', %d, '{'0' * 64}'"
    attack(log, "DROP INDEX ix_audit_position", f"INSERT INTO audit {row} VALUES (99, {values % 5})")
    assert named(checked(log)) == [("twice", 5, 99)]
    attack(
        log,
        "DELETE FROM audit WHERE id = 99",
        "UPDATE audit SET position = position + 1 WHERE position > 8",
        f"INSERT INTO audit {row} VALUES (99, {values % 9})",
    )
    try:
        found = [finding for finding in named(checked(log)) if finding[0] != "head"]
        assert found == [("reordered", 9, 99), ("reordered", 10, 9), ("reordered", 11, 10)]
    finally:
        attack(log, "DELETE FROM audit", "CREATE UNIQUE INDEX ix_audit_position ON audit (position)")


def test_findings_are_counted_where_they_are_too_many_to_be_listed(database: Database) -> None:
    note(database, *map(str, range(LISTED + 30)))
    sealed(database)
    attack(database, "UPDATE audit SET actor = 'prn_b'")
    found = checked(database)
    assert (found.found, len(found.findings)) == (LISTED + 30, LISTED)


def test_entries_that_wait_too_long_for_a_sealer_are_told(database: Database) -> None:
    note(database, "a", "b")
    assert checked(database).overdue == 0
    attack(database, "UPDATE audit SET at = '2020-01-01 00:00:00+00:00' WHERE subject = 'a'")
    found = checked(database)
    assert (found.ok, found.unsealed, found.overdue, found.overdue_first) == (True, 2, 1, 1)


_FORGED = (
    "(id, at, actor, action, subject, facts, position, hash) VALUES ({}, '2026-01-01', 'x', 'a', 's', '{{}}', {}, 'x')"
)
OVER = (
    f"INSERT OR REPLACE INTO audit {_FORGED.format(1, 'NULL')}",
    f"INSERT OR REPLACE INTO audit {_FORGED.format(99, 1)}",
    f"INSERT INTO audit {_FORGED.format(1, 1)} ON CONFLICT DO UPDATE SET actor = 'x'",
    "UPDATE OR REPLACE audit SET position = 1 WHERE position IS NULL",
    "INSERT OR REPLACE INTO audit_heads (position, hash, at, signature) VALUES (10, 'x', '2026-01-01', 'x')",
)
EMPTY = ("TRUNCATE audit", "TRUNCATE audit_heads", "TRUNCATE jobs, audit CASCADE")


def test_the_database_itself_refuses_to_change_or_remove(log: Database) -> None:
    note(log, "waiting")
    for statement in (
        "UPDATE audit SET actor = 'x' WHERE position = 1",
        "UPDATE audit SET position = 99 WHERE position = 1",
        "UPDATE audit SET hash = 'x' WHERE position = 1",
        "UPDATE audit SET facts = '{}' WHERE position IS NULL",
        "DELETE FROM audit WHERE position = 1",
        "DELETE FROM audit WHERE position IS NULL",
        "UPDATE audit_heads SET signature = 'x'",
        "DELETE FROM audit_heads",
        *(OVER if log.engine.dialect.name == "sqlite" else EMPTY),
    ):
        with pytest.raises(DBAPIError, match="append-only"), log.transaction() as session:
            session.execute(text(statement))
    assert checked(log).ok


def test_the_chain_is_whole_under_writers_and_sealers_at_once(database: Database) -> None:
    writing = threading.Event()

    def write(number: int) -> None:
        for entry in range(15):
            note(database, f"{number}.{entry}")

    def seal() -> int:
        times = 0
        while not writing.is_set():
            sealed(database)
            times += 1
        return times

    with ThreadPoolExecutor(6) as pool:
        sealers = [pool.submit(seal) for _ in range(2)]
        for one in [pool.submit(write, number) for number in range(4)]:
            one.result(60)
        writing.set()
        assert all(one.result(60) for one in sealers)
    assert sealed(database).position == 60
    found = checked(database)
    assert (found.ok, found.entries, found.unsealed) == (True, 60, 0)


def test_writers_do_not_wait_for_a_sealer(postgresql_url: str) -> None:
    database = open_database(postgresql_url)
    note(database, "a")
    with database.transaction() as session:
        chain.seal(session)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(note, database, "b").result(10)  # would wait for ever
    assert sealed(database).position == 2
    database.close()


def test_a_head_is_signed_at_most_once_a_minute_and_only_over_something_new(log: Database) -> None:
    note(log, "more")
    with log.transaction() as session:
        assert not chain.sign_head(session, chain.seal(session), signature)
    attack(log, "UPDATE audit_heads SET at = '2020-01-01 00:00:00+00:00'")
    with log.transaction() as session:
        assert chain.sign_head(session, chain.seal(session), signature)
        newest = chain.newest_head(session)
        assert newest is not None
        assert newest.position == 11
    attack(log, "UPDATE audit_heads SET at = '2020-01-01 00:00:00+00:00'")
    with log.transaction() as session:
        assert not chain.sign_head(session, chain.seal(session), signature)
