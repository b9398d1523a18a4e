"""A claimed job, as a worker has it in hand."""

from collections.abc import Iterator

import pytest

from api.store import claims, jobs, keys
from api.store.claims import Claim
from api.store.session import Database
from core.spec.job import parse
from tests.vault import VAULT
from worker.engine import Engine

LEASE = 1.5


@pytest.fixture
def job_id(database: Database) -> str:
    """A queued job."""
    spec = parse({"model": "a/model", "data": {"forget": {"source": "jsonl", "path": "a/file"}}, "method": "GA"})
    with database.transaction() as session:
        key = keys.create(session, b"secret", name="worker", actor="test")[0]
        return jobs.create(session, spec, key_id=key.id)[0].id


@pytest.fixture
def claim(database: Database, job_id: str) -> Claim:
    """A job that this test runs, for a lease of 1.5 s."""
    with database.transaction() as session:
        claimed = claims.claim(session, job_id, worker="here", lease=LEASE, vault=VAULT)
    assert claimed is not None
    return claimed


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A real child process, with secrets about that it must not be given."""
    for name in ("LETHE_DATABASE_URL", "LETHE_SIGNING_KEY_FILE", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "do-not-pass-on")
    started = Engine()
    yield started
    started.kill()
    started.wait()
