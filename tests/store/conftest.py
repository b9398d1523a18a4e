"""What a job needs to exist: a key, a model, a data set, and a spec that names them."""

from collections.abc import Callable
from typing import Any

import pytest

from api.store import claims, datasets, jobs, keys, models, sealed
from api.store.artifacts import StoredFile
from api.store.claims import Claim
from api.store.session import Database
from api.store.tables import ApiKey, Dataset, Model
from core.spec.job import JobSpec, parse
from tests.vault import VAULT

SECRET = b"the deployment's secret"


@pytest.fixture
def key(database: Database) -> ApiKey:
    with database.transaction() as session:
        return keys.create(session, SECRET, name="tests", actor="test")[0]


@pytest.fixture
def model(database: Database, key: ApiKey) -> Model:
    files = {"model.safetensors": {"sha256": "1" * 64, "size": 10}}
    with database.transaction() as session:
        return models.register(
            session, path="/models/tiny", digest="2" * 64, files=files, architecture="LlamaForCausalLM", key_id=key.id
        )[0]


@pytest.fixture
def dataset(database: Database, key: ApiKey) -> Dataset:
    with database.transaction() as session:
        return datasets.register(
            session,
            VAULT,
            rows=4,
            size=100,
            blob="3" * 64,
            key=sealed.new_key(),
            commitment="4" * 64,
            warnings=["row 2 repeats row 1"],
            key_id=key.id,
        )


@pytest.fixture
def spec(model: Model, dataset: Dataset) -> JobSpec:
    return spec_for(model.id, dataset.id)


@pytest.fixture
def job_id(database: Database, spec: JobSpec, key: ApiKey) -> str:
    """A queued job."""
    with database.transaction() as session:
        return jobs.create(session, spec, key_id=key.id)[0].id


@pytest.fixture
def take(database: Database) -> Callable[..., Claim]:
    """Claim a job that is known to be queued."""

    def claim(job_id: str, *, worker: str = "w1", lease: float = 30.0) -> Claim:
        with database.transaction() as session:
            claimed = claims.claim(session, job_id, worker=worker, lease=lease, vault=VAULT)
        assert claimed is not None
        return claimed

    return claim


def spec_for(model: str, dataset: str, **more: Any) -> JobSpec:
    return parse({"model": model, "data": {"forget": {"source": "upload", "dataset": dataset}}, "method": "GA", **more})


def stored(name: str, digest: str = "a", *, sealed: bool = False) -> StoredFile:
    return StoredFile(name, (digest * 64)[:64], 7, sealed)
