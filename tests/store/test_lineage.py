"""Models that jobs have made: entered with the job's end, followed back to the root, given up with their files."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from api.store import aliases, artifacts, attempts, audit, claims, decisions, jobs, lineage, models
from api.store.artifacts import StoredFile
from api.store.blobs import Blobs
from api.store.claims import Claim
from api.store.errors import Conflict
from api.store.session import Database
from api.store.tables import ApiKey, Dataset, Model, Verdict
from core.errors import SpecError
from tests.store.conftest import spec_for, stored
from tests.vault import VAULT

WEIGHTS = ("config.json", "model.safetensors")
Forget = Callable[..., Model]


@pytest.fixture
def forget(database: Database, key: ApiKey, dataset: Dataset) -> Forget:
    """Runs a job to its successful end, and returns the model that it has left."""

    def run(
        model: str | dict[str, str], digit: str, verdict: Verdict = "passed", files: Sequence[StoredFile] = ()
    ) -> Model | None:
        with database.transaction() as session:
            job, _ = jobs.create(session, spec_for(model, dataset.id), key_id=key.id)  # type: ignore[arg-type]
        with database.transaction() as session:
            claim = claims.claim(session, job.id, worker="w1", lease=30, vault=VAULT)
        assert claim is not None
        finish(database, claim, digit, verdict, files)
        with database.reading() as session:
            return models.of_job(session, job.id)

    return run  # type: ignore[return-value]


def finish(
    database: Database, claim: Claim, digit: str, verdict: Verdict = "passed", files: Sequence[StoredFile] = ()
) -> None:
    given = files or [stored(f"model/{name}", f"{digit}{i}") for i, name in enumerate(WEIGHTS)]
    with database.transaction() as session:
        attempts.finish(
            session,
            claim,
            verdict=verdict,
            files={"model": given},
            sign=lambda *_: {"envelope": stored("report.dsse.json", digit)},
            model_digest=digit * 64,
        )


def test_what_a_job_leaves_is_a_model_with_parent_and_root(
    database: Database, model: Model, dataset: Dataset, forget: Forget
) -> None:
    first = forget(model.id, "a")
    second = forget(first.id, "b", "not_passed")
    assert (first.path, first.digest, first.architecture) == (f"job:{first.job_id}", "a" * 64, model.architecture)
    assert first.files.keys() == set(WEIGHTS)
    assert first.files["config.json"] == {"sha256": ("a0" * 64)[:64], "size": 7}
    assert [(m.parent_id, m.root_id) for m in (first, second)] == [(model.id, model.id), (first.id, model.id)]
    with database.reading() as session:
        assert [m.id for m in lineage.line(session, second)] == [second.id, first.id, model.id]
        assert [m.id for m in lineage.line(session, second, 2)] == [second.id, first.id]
        assert lineage.children(session, model.id) == [first.id]
        found, count = lineage.removed_before(session, second, 1)
        assert ([removed.job_id for removed in found], count) == ([second.job_id], 2)
        assert found[0].forget is not None
        assert (found[0].forget.id, found[0].report) == (dataset.id, None)
        assert lineage.removed_before(session, model, 5) == ([], 0)


def test_adapters_alone_are_no_model_to_start_from(database: Database, model: Model, forget: Forget) -> None:
    files = [stored("model/adapter_config.json", "c"), stored("model/adapter_model.safetensors", "d")]
    assert forget(model.id, "c", files=files) is None
    with database.reading() as session:
        assert len(models.page(session)[0]) == 1


def test_jobs_that_shared_a_run_have_all_removed_something(database: Database, model: Model, forget: Forget) -> None:
    first, other = forget(model.id, "a"), forget(model.id, "b")
    with database.transaction() as session:
        assert first.job_id
        assert other.job_id
        jobs.get(session, other.job_id).led_by = first.job_id
    for one in (first, other):
        with database.reading() as session:
            found, count = lineage.removed_before(session, one, 5)
            assert ({removed.job_id for removed in found}, count) == ({first.job_id, other.job_id}, 2)


def test_a_deleted_model_leaves_its_row_and_nothing_else(
    database: Database, model: Model, dataset: Dataset, key: ApiKey, forget: Forget
) -> None:
    first = forget(model.id, "a")
    assert first.job_id
    with database.transaction() as session:
        gone, blobs = models.delete(session, first.id, actor="prn_x", key_id=key.id)
        assert sorted(artifacts.unreferenced(session, blobs)) == sorted(f["sha256"] for f in first.files.values())
    assert gone.deleted_at is not None
    with database.transaction() as session:
        assert {file.kind for file in artifacts.of(session, first.job_id)} == {"envelope"}
        assert [m.id for m in models.page(session)[0]] == [model.id]
        assert models.delete(session, first.id, actor="prn_x")[1] == blobs  # a deletion that was broken off
        assert [entry.action for entry in audit.about(session, first.id)] == ["model.deleted"]
        with pytest.raises(SpecError, match="or it is deleted"):
            jobs.create(session, spec_for(first.id, dataset.id), key_id=key.id)


def test_a_registered_folder_is_forgotten_and_may_come_back(database: Database, model: Model, key: ApiKey) -> None:
    facts: dict[str, Any] = {"files": model.files, "architecture": model.architecture, "key_id": key.id}
    with database.transaction() as session:
        assert models.delete(session, model.id, actor="prn_x")[1] == []
        assert models.usable(session, model.id) is None
    for new in (True, False):
        with database.transaction() as session:
            again, created = models.register(session, path=model.path, digest=model.digest, **facts)
        assert (again.id, created, again.deleted_at) == (model.id, new, None)


def test_a_model_of_a_job_under_legal_hold_is_not_deleted(database: Database, model: Model, forget: Forget) -> None:
    made = forget(model.id, "a")
    assert made.job_id is not None
    with database.transaction() as session:
        decisions.hold(session, made.job_id, "prn_x", reason="a claim was raised")
    with database.transaction() as session, pytest.raises(Conflict, match=f"job {made.job_id}, which is under legal"):
        models.delete(session, made.id, actor="prn_x")
    with database.transaction() as session:
        assert len(artifacts.of(session, made.job_id, "model")) == len(WEIGHTS)
        decisions.release(session, made.job_id, "prn_x", reason="it was settled")
    with database.transaction() as session:
        assert models.delete(session, made.id, actor="prn_x")[0].deleted_at is not None


@pytest.mark.parametrize("field", ["model", "base", "reference", "alias"])
def test_what_a_job_still_names_is_not_deleted(
    database: Database, model: Model, dataset: Dataset, key: ApiKey, forget: Forget, field: str
) -> None:
    other = forget(model.id, "a")
    more: dict[str, Any] = {
        "base": {
            "method": {"name": "retrain", "base": other.id},
            "data": {name: {"source": "jsonl", "path": f"/{name}"} for name in ("forget", "retain")},
        },
        "reference": {
            "evaluation": {"reference": other.id},
            "data": {name: {"source": "jsonl", "path": f"/{name}"} for name in ("forget", "holdout")},
        },
    }.get(field, {})
    named: Any = {"model": other.id, "alias": {"alias": "production"}}.get(field, model.id)
    with database.transaction() as session:
        if field == "alias":
            aliases.promote(session, "production", other.id, reason="first", actor="prn_x")
        job, _ = jobs.create(session, spec_for(named, dataset.id, **more), key_id=key.id)
        if field == "alias":
            claims.claim(session, job.id, worker="w1", lease=30, vault=VAULT)
            aliases.promote(session, "production", model.id, reason="meanwhile", actor="prn_x")
    with database.transaction() as session, pytest.raises(Conflict, match=job.id):
        models.delete(session, other.id, actor="prn_x")


def test_a_blob_that_another_model_has_stays(database: Database, model: Model, forget: Forget, tmp_path: Any) -> None:
    blobs = Blobs(f"file://{tmp_path}/blobs")
    files = {}
    for name, text in (("shared", "config"), ("one", "weights 1"), ("two", "weights 2")):
        (tmp_path / name).write_text(text)
        files[name] = blobs.put(tmp_path / name)
    made = [
        forget(
            model.id,
            digit,
            files=[
                StoredFile("model/config.json", files["shared"].digest, 6),
                StoredFile("model/model.safetensors", files[name].digest, 9),
            ],
        )
        for digit, name in (("a", "one"), ("b", "two"))
    ]
    with database.transaction() as session:
        _, unused = models.delete(session, made[0].id, actor="prn_x")
    with database.transaction() as session:
        artifacts.delete_plain(session, blobs, unused)
    assert {name: blobs.holds(blob.digest) for name, blob in files.items()} == {
        "shared": True,
        "one": False,
        "two": True,
    }


def test_a_blob_is_not_deleted_while_a_job_that_has_the_same_file_is_ending(
    database: Database, job_id: str, tmp_path: Any
) -> None:
    blobs = Blobs(f"file://{tmp_path}/blobs")
    (tmp_path / "config.json").write_text("{}")
    blob = blobs.put(tmp_path / "config.json")

    def delete() -> None:
        with database.transaction() as session:
            artifacts.delete_plain(session, blobs, [blob.digest])

    with database.transaction() as ending:
        job = jobs.get(ending, job_id)  # as in a job's end, which holds the job: on SQLite that is the lock
        artifacts.keep_plain(ending)
        deleting = threading.Thread(target=delete)
        deleting.start()
        artifacts.add(ending, job, "model", [StoredFile("model/config.json", blob.digest, 2)])
        deleting.join(0.3)
        assert deleting.is_alive()
        assert blobs.holds(blob.digest)
    deleting.join()
    assert blobs.holds(blob.digest)
