"""Keys are stored wrapped, each for its own row; those of the first version are wrapped at a start."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from api.store import bare, datasets, jobs, sealed
from api.store.errors import InvalidSetting
from api.store.session import Database
from api.store.tables import Dataset, Job
from api.store.vault import BARE, Vault
from tests.vault import VAULT


def test_a_key_opens_under_its_own_name_and_master_key_only() -> None:
    key = sealed.new_key()
    wrapped = VAULT.wrap(key, "ds_00000001")
    assert key not in wrapped
    assert len(wrapped) != BARE
    assert VAULT.unwrap(wrapped, "ds_00000001") == key
    assert VAULT.wrap(key, "ds_00000001") != wrapped
    for vault, changed, about in (
        (VAULT, wrapped, "ds_00000002"),
        (Vault(b"another master key"), wrapped, "ds_00000001"),
        (VAULT, wrapped[:-1] + bytes([wrapped[-1] ^ 1]), "ds_00000001"),
        (VAULT, b"", "ds_00000001"),
    ):
        with pytest.raises(InvalidSetting, match="ds_0000000"):
            vault.unwrap(changed, about)


@given(st.lists(st.binary(max_size=8), max_size=8), st.randoms())
def test_a_fingerprint_knows_which_records_and_how_many_of_each_but_no_order(rows: list[bytes], chance: object) -> None:
    def of(records: list[bytes], vault: Vault = VAULT) -> str:
        made = vault.fingerprint()
        for record in records:
            made.add(record)
        return made.hex()

    shuffled = [*rows]
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert of(shuffled) == of(rows)
    assert of([*rows, b"one more"]) != of(rows)
    assert not rows or of([*rows, rows[0]]) != of(rows)
    assert of(rows, Vault(b"another master key")) != of(rows)


def test_bare_keys_are_wrapped_once_by_however_many_start(database: Database, dataset: Dataset, job_id: str) -> None:
    old = {Dataset: (dataset.id, b"d" * BARE), Job: (job_id, b"j" * BARE)}
    with database.transaction() as session:
        for table, (row, key) in old.items():
            session.execute(update(table).where(table.id == row).values(key=key))
    assert VAULT.unwrap(old[Job][1], job_id) == old[Job][1]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: bare.wrap_all(database, VAULT), range(4)))
    with database.reading() as session:
        stored = {Dataset: datasets.get(session, dataset.id).key, Job: jobs.get(session, job_id).key}
    for table, (row, key) in old.items():
        assert stored[table] is not None
        assert key not in stored[table]
        assert VAULT.unwrap(stored[table], row) == key
    assert bare.wrap_all(database, VAULT) == 0
