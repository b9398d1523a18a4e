"""What the API's tests are made of: settings, keys, a model folder, a request, and the API as a process of its own."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from api.settings import Settings
from api.store import keys
from api.store.keys import Scope
from api.store.session import Database
from tests.vault import MASTER

ROOT = Path(__file__).parents[2]
SECRET = "what keys are hashed under in the tests' own deployment"
NOBODY = "redis://127.0.0.1:1/0"  # a broker that refuses connections at once
JSONL = {"Content-Type": "application/jsonl"}


def settings_for(database_url: str, folder: Path, **changes: Any) -> Settings:
    """Settings with everything under one folder."""
    for name in ("models", "data"):
        (folder / name).mkdir(exist_ok=True)
    given: dict[str, Any] = {
        "database_url": database_url,
        "broker_url": NOBODY,
        "artifacts_url": f"file://{folder / 'artifacts'}",
        "key_secret": SECRET,
        "master_key": MASTER,
        "model_roots": [folder / "models"],
        "data_roots": [folder / "data"],
        "events_poll": 0.05,
        "webhooks_deliver": False,
        # Counted, and never reached: many tests of one minute may share a Redis.
        "rate_limit": "1000000/minute",
        "refusal_limit": "100000/minute",
    }
    return Settings(**{**given, **changes})


def key_for(
    database: Database,
    name: str = "tester",
    secret: str = SECRET,
    expires_at: datetime | None = None,
    scopes: Sequence[Scope] = ("admin",),
) -> str:
    """The text of a new key of the principal of that name."""
    with database.transaction() as session:
        made = keys.create(
            session, secret.encode(), name=name, principal=name, scopes=scopes, actor="test", expires_at=expires_at
        )
        return made[1]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def safetensors(size: int = 0) -> bytes:
    """A file of the format, with one tensor of so many bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def model_folder(root: Path, name: str = "tiny", **config: Any) -> Path:
    """A folder that looks like a model to whoever registers it."""
    folder = root / name
    folder.mkdir(parents=True)
    described = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **config}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "model.safetensors").write_bytes(safetensors(64))
    return folder


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


RECORDS = lines(*({"question": f"Q{i}?", "answer": f"A{i}."} for i in range(4)))


def uploaded(client: Any, headers: dict[str, str] | None = None) -> str:
    """Id of a set of one's own: whoever may not see everybody's names no other."""
    response = client.post("/datasets", content=RECORDS, headers=JSONL | (headers or {}))
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def request_for(model: str, forget: str, **changes: Any) -> dict[str, Any]:
    """A body for POST /jobs."""
    data = {"forget": {"source": "upload", "dataset": forget}}
    return {"model": {"id": model}, "data": data, "method": "GA", **changes}


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """The problem document of a response, which must be one in every respect."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail", "code", "param", "request_id"} <= body.keys()
    assert (body["type"], body["status"], body["code"]) == ("about:blank", status, code)
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["detail"]
    assert response.headers["x-content-type-options"] == "nosniff"
    return body


class ApiProcess:
    """The API as it is run in production: a uvicorn process, its log in a file."""

    def __init__(self, settings: Settings, folder: Path, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "api.log"
        given = settings.model_dump(mode="json")
        own = {f"LETHE_{name.upper()}": v if isinstance(v, str) else json.dumps(v) for name, v in given.items()}
        self._env = {**os.environ, **own, **environment}

    def __enter__(self) -> "ApiProcess":
        began = time.monotonic()
        command = [sys.executable, "-m", "uvicorn", "api.app:create_app", "--factory", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--ws", "none", "--timeout-graceful-shutdown", "2"],
                cwd=ROOT,
                env=self._env,
                stdout=log,
                stderr=log,
            )
        while True:
            try:
                httpx.get(f"{self.url}/healthz", timeout=5).raise_for_status()
                break
            except httpx.TransportError:
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.01)
        self.started_in = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)

    def client(self, key: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=bearer(key), timeout=20)
