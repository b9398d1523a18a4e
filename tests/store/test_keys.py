"""A key opens only as it was given out, until it expires or is revoked; its text is nowhere in the database."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from api.store import audit, keys, principals
from api.store.errors import Conflict
from api.store.session import Database, now
from api.store.tables import ApiKey
from tests.store.conftest import SECRET


@pytest.fixture
def issued(database: Database) -> tuple[ApiKey, str]:
    with database.transaction() as session:
        return keys.create(session, SECRET, name="ours", actor="test")


def test_a_key_opens_and_its_use_is_noted_once_a_minute(database: Database, issued: tuple[ApiKey, str]) -> None:
    key, text = issued
    assert text.startswith(f"lethe_{key.prefix}_")

    def used() -> datetime | None:
        found = keys.verify(database, text, SECRET)
        assert found is not None
        assert found.id == key.id
        with database.reading() as session:
            row = session.get(ApiKey, key.id)
            assert row is not None
            return row.last_used_at

    first = used()
    assert first is not None
    assert used() == first
    with database.transaction() as session:
        session.execute(update(ApiKey).values(last_used_at=first - timedelta(seconds=61)))
    later = used()
    assert later is not None
    assert later >= first


def wrong(text: str) -> Iterator[str]:
    for i in range(len(text)):
        yield text[:i] + ("0" if text[i] != "0" else "1") + text[i + 1 :]
        yield text[:i]
        yield text[:i] + text[i + 1 :]
    yield from (text + "0", text.upper(), " " + text, text + "\n", text.replace("e", "е"), "\x00" + text)


def test_nothing_else_opens(database: Database, issued: tuple[ApiKey, str]) -> None:
    _, text = issued
    for other in wrong(text):
        assert other == text or keys.verify(database, other, SECRET) is None, other
    assert keys.verify(database, text, b"another deployment's secret") is None
    # A checksum is no secret: whoever makes a right one must still fail.
    forged = text[:15] + "0" * 32
    assert keys.verify(database, forged + keys._checksum(forged), SECRET) is None
    unknown = "lethe_00000000_" + "0" * 32
    assert keys.verify(database, unknown + keys._checksum(unknown), SECRET) is None


def test_a_revoked_key_does_not_open(database: Database, issued: tuple[ApiKey, str]) -> None:
    key, text = issued
    for _ in range(2):
        with database.transaction() as session:
            keys.revoke(session, key.id, actor="test")
    assert keys.verify(database, text, SECRET) is None


def test_a_key_opens_until_it_expires(database: Database) -> None:
    with database.transaction() as session:
        soon, late = (
            keys.create(session, SECRET, name="x", actor="test", expires_at=now(session) + timedelta(seconds=seconds))[
                1
            ]
            for seconds in (-1, 60)
        )
    assert keys.verify(database, soon, SECRET) is None
    assert keys.verify(database, late, SECRET) is not None
    with pytest.raises(Exception, match="without a time zone"), database.transaction() as session:
        keys.create(session, SECRET, name="x", actor="test", expires_at=datetime.now(UTC).replace(tzinfo=None))


def test_a_key_of_a_disabled_principal_does_not_open(database: Database, issued: tuple[ApiKey, str]) -> None:
    key, text = issued
    for _ in range(2):
        with database.transaction() as session:
            principals.disable(session, key.principal_id, actor="test")
    assert keys.examine(database, text, SECRET)[1] == "disabled"
    assert keys.verify(database, text, SECRET) is None
    with database.reading() as session:
        assert not keys.usable(session, key.id)
        assert [e.action for e in audit.about(session, key.principal_id)] == ["principal.created", "principal.disabled"]
    with pytest.raises(Conflict, match="disabled"), database.transaction() as session:
        keys.create(session, SECRET, name="another", principal="ours", actor="test")


def test_two_that_revoke_one_another_leave_one(database: Database) -> None:
    with database.transaction() as session:
        pair = [keys.create(session, SECRET, name=name, actor="test")[0].id for name in ("one", "other")]
        keys.create(session, SECRET, name="reader", actor="test", scopes=["jobs:read"])
        keys.create(session, SECRET, name="old", actor="test", expires_at=now(session))

    def revoke(key_id: str) -> bool:
        try:
            with database.transaction() as session:
                keys.leave_an_admin(session, without_key=key_id)
                keys.revoke(session, key_id, actor="test")
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(revoke, pair)) == [False, True]
