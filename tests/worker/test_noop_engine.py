"""The engine that computes nothing keeps the engine's protocol: it goes on, stops, and its weights do not tell how."""

import threading
from pathlib import Path
from typing import Any

import pytest

from api.store import artifacts, jobs, keys
from api.store.blobs import Blobs
from api.store.session import Database
from api.store.vault import Vault
from benchmarks import noop_engine
from core.report.schema import Report
from core.report.sign import new_key
from core.spec.job import parse
from tests.attempts import attempts_of
from tests.chaos.conftest import until
from worker.attempt import Bench, run_next
from worker.engine import Engine, Spare
from worker.settings import WorkerSettings

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def _job(database: Database, key_id: str, **training: Any) -> str:
    data = {"forget": {"source": "jsonl", "path": "a/file"}}
    spec = parse({"model": "a/model", "data": data, "method": "GA", "training": training})
    with database.transaction() as session:
        return jobs.create(session, spec, key_id=key_id)[0].id


def test_a_job_on_it_succeeds_alike_whether_it_was_stopped_or_not(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    settings = WorkerSettings(
        database_url=database_url,
        broker_url="redis://never-rung",
        master_key="the master key of the tests' own worker",
        artifacts_url=f"file://{tmp_path / 'artifacts'}",
        work_dir=tmp_path / "work",
        signing_key_file=tmp_path / "signing.pem",
        engine_python=noop_engine.program(tmp_path, seconds=1.0),
    )
    spare = Spare(python=str(settings.engine_python))
    spare.refill()
    vault, blobs = Vault(settings.master_key.encode()), Blobs(settings.artifacts_url)

    def bench(leaving: threading.Event) -> Bench:
        return Bench(settings, database, blobs, spare, leaving, new_key(), vault, "here")

    with database.transaction() as session:
        key_id = keys.create(session, b"secret", name="worker", actor="test")[0].id
    straight = _job(database, key_id, steps=20, checkpoint_every=2)
    assert run_next(bench(threading.Event()))

    stopped, leaving = _job(database, key_id, steps=20, checkpoint_every=2), threading.Event()
    runner = threading.Thread(target=run_next, args=(bench(leaving),))
    runner.start()

    def progress() -> dict[str, Any]:
        with database.reading() as session:
            return jobs.get(session, stopped).progress

    until(lambda: progress().get("step", 0) >= 3)
    leaving.set()
    runner.join()
    with database.reading() as session:
        assert jobs.get(session, stopped).status == "queued"
    assert run_next(bench(threading.Event()))

    with database.reading() as session:
        made = [{f.name: f for f in artifacts.of(session, job_id)} for job_id in (straight, stopped)]
        first, second = attempts_of(session, stopped)
        job = jobs.get(session, stopped)
    assert (first.outcome, second.outcome, job.status) == ("queued", "succeeded", "succeeded")
    assert second.resumed_from >= 3
    assert len({files["model/model.safetensors"].digest for files in made}) == 1
    blobs.get(made[1]["report.json"].digest, tmp_path / "report.json")
    report = Report.model_validate_json((tmp_path / "report.json").read_bytes())
    assert (report.spec_digest, report.training.steps) == (job.spec_digest, 20)
    spare.close()


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("orphaned", [False, True])
def test_it_ends_with_its_lease_or_its_worker(tmp_path: Path, orphaned: bool) -> None:
    (tmp_path / "spec.json").write_text('{"seed": 0, "training": {"steps": 10}}')
    command = {"spec": str(tmp_path / "spec.json"), "out": str(tmp_path), "resume": None, "commitments": {}}
    engine = Engine(python=str(noop_engine.program(tmp_path, seconds=60.0)))
    engine.start(command | {"lease": 60.0 if orphaned else 0.5})
    if orphaned:
        assert engine._process.stdin is not None
        engine._process.stdin.close()
    assert engine.wait() == 6
