"""A key that opened a moment ago opens again without the database, for as long as is said and no longer."""

import time
from datetime import timedelta

from api.known_keys import KnownKeys
from api.store import keys
from api.store.session import now, open_database

SECRET = b"of this deployment"


def test_a_revoked_key_is_known_no_longer_than_is_said(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    with database.transaction() as session:
        key, text = keys.create(session, SECRET, name="ada", actor="test")
    here, elsewhere = KnownKeys(SECRET), KnownKeys(SECRET, seconds=0.2)
    for known in (here, elsewhere):
        assert known.recalled(text) is None
        found = known.verify(database, text)
        assert found is not None
        assert found.id == key.id
        assert known.recalled(text) is found
        assert known.recalled(text[:-1]) is None
        assert known.verify(database, text[:-1]) is None
        assert (known.familiar(text), known.familiar(text[:-1])) == (True, False)
    with database.transaction() as session:
        keys.revoke(session, key.id, actor="test")
    here.forget()
    assert here.recalled(text) is None
    assert here.familiar(text)
    assert here.verify(database, text) is None
    assert not here.familiar(text)
    time.sleep(0.2)
    assert elsewhere.recalled(text) is None
    database.close()


def test_a_key_that_expires_meanwhile_is_not_recalled(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    with database.transaction() as session:
        soon = now(session) + timedelta(seconds=0.3)
        _, text = keys.create(session, SECRET, name="ada", actor="test", expires_at=soon)
    known = KnownKeys(SECRET, seconds=60)
    assert known.verify(database, text) is not None
    assert known.recalled(text) is not None
    time.sleep(0.35)
    assert known.recalled(text) is None
    database.close()


def test_nothing_in_memory_holds_the_text(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    with database.transaction() as session:
        _, text = keys.create(session, SECRET, name="ada", actor="test")
    known = KnownKeys(SECRET)
    known.verify(database, text)
    assert text not in repr(vars(known))
    database.close()
