"""The API within the test's own process, on each database."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from api.store import logs
from api.store.session import Database
from tests.api.parts import bearer, key_for, model_folder, settings_for, uploaded


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """The API takes all logs of its process over; a test gives them back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    looked_up = {name: getattr(logging, name, None) for name in logs.UNUSED}  # one of them from Python 3.12 on
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, value in looked_up.items():
        setattr(logging, name, value)
    structlog.reset_defaults()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return settings_for(database_url, tmp_path)


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def key(database: Database) -> str:
    return key_for(database)


@pytest.fixture
def client(app: FastAPI, key: str) -> Iterator[TestClient]:
    with TestClient(app, headers=bearer(key)) as opened:
        yield opened


@pytest.fixture
def dataset(client: TestClient) -> str:
    """Id of an uploaded set."""
    return uploaded(client)


@pytest.fixture
def model(client: TestClient, tmp_path: Path) -> str:
    """Id of a registered model."""
    response = client.post("/models", json={"path": str(model_folder(tmp_path / "models"))})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])
