"""What the demo and the benchmarks use of a service, against a running one."""

import io
from pathlib import Path

import pytest

from api.client import Client
from api.store import attempts, claims
from api.store.artifacts import StoredFile
from api.store.blobs import Blobs
from api.store.session import Database
from tests.api.parts import ApiProcess, key_for, model_folder, request_for, settings_for
from tests.vault import VAULT


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_download_is_everything_that_is_given_out(database: Database, database_url: str, tmp_path: Path) -> None:
    blobs = Blobs(f"file://{tmp_path}/artifacts")

    def stored(name: str, key: bytes | None = None) -> StoredFile:
        blob = blobs.put(io.BytesIO(name.encode()), key)
        return StoredFile(name, blob.digest, blob.size, sealed=key is not None)

    with (
        ApiProcess(settings_for(database_url, tmp_path), tmp_path) as api,
        Client(api.url, key_for(database)) as client,
    ):
        model = client.register(model_folder(tmp_path / "models"))
        job = client.submit(request_for(model, client.upload([{"text": "to be forgotten"}])))
        with database.transaction() as session:
            claim = claims.claim(session, job, worker="w", lease=60, vault=VAULT)
            assert claim is not None
            attempts.finish(
                session,
                claim,
                verdict="passed",
                files={
                    "model": [stored("model/config.json")],
                    "rows": [stored("rows/after-forget.parquet", claim.key)],
                    "plot": [stored("plots/scores.svg")],
                },
                sign=lambda *_: {"envelope": stored("report.dsse.json")},
            )
        folder = client.download(job, tmp_path / "downloaded")
    files = {file.relative_to(folder).as_posix(): file.read_text() for file in folder.rglob("*") if file.is_file()}
    assert files == {name: name for name in ("model/config.json", "plots/scores.svg", "report.dsse.json")}
