"""An attempt's folder: spec, data in plain text, checkpoint to go on from, and what the engine writes.

It exists only while the attempt runs. The lock file tells a folder in use from one whose worker has died.
"""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from api.store import references
from api.store.blobs import Blobs
from api.store.claims import Claim
from api.store.tables import Model
from core.errors import LetheError, Problem, SpecError
from core.spec.job import parse

_LOCK = ".in-use"


@contextmanager
def attempt_folder(work_dir: Path, claim: Claim) -> Iterator[Path]:
    """A new folder for the attempt, readable by this user alone, removed at the end whatever happens."""
    work_dir.mkdir(parents=True, exist_ok=True)
    folder = work_dir / f"{claim.job_id}-{claim.attempt}"
    # Made and locked under another name first: a sweep beside us must never see it unlocked.
    draft = Path(tempfile.mkdtemp(prefix=".new-", dir=work_dir))
    with (draft / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            draft.replace(folder)
            yield folder
        finally:
            _remove(folder)
            _remove(draft)


def remove_abandoned(work_dir: Path) -> list[str]:
    """Remove the folders of attempts whose worker is gone; returns their names."""
    removed = []
    for folder in work_dir.glob("job_*"):
        try:
            with (folder / _LOCK).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
        except FileNotFoundError:
            # It came into its place with its lock inside, so this is what a removal that was broken off has left.
            _remove(folder)
        except BlockingIOError:
            continue
        removed.append(folder.name)
    return removed


def _remove(folder: Path) -> None:
    """Plaintext first, the lock with the rest: a removal that is broken off is seen as such, and done again."""
    shutil.rmtree(folder / "data", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def fill(folder: Path, claim: Claim, blobs: Blobs, lease: float) -> dict[str, Any]:
    """Write what the engine needs and return its command. A checkpoint is put there by `restore_checkpoint`.

    Raises BlobMissing and BlobDamaged for data sets and for models that jobs have left, InvalidSetting for keys that do
    not open, and SpecError for a spec that this version cannot read or that names what is not there any more.
    """
    paths: dict[str, Path] = {}
    requests = []
    for each in claim.everyone:
        try:
            requests.append(_request(folder, each, blobs, paths))
        except LetheError as error:
            error.of = each.job_id
            raise
    models = {model.id: _model(model, folder, blobs) for model in claim.models.values()}
    if claim.model and "alias" in claim.spec["model"]:
        models[claim.spec["model"]["alias"]] = models[claim.model.id]
    inputs = {"models": models, "datasets": {name: str(path) for name, path in paths.items()}}
    (folder / "inputs.json").write_text(json.dumps(inputs))
    (folder / "out").mkdir()
    return {
        **requests[0],
        "members": requests if claim.others else [],
        "inputs": str(folder / "inputs.json"),
        "out": str(folder / "out"),
        "resume": None,
        "model_digest": claim.model.digest if claim.model else None,
        "lease": lease,
    }


def _request(folder: Path, claim: Claim, blobs: Blobs, paths: dict[str, Path]) -> dict[str, Any]:
    """Write what one request brings: its spec, and its data sets where they are not among `paths` yet."""
    if claim.closed is not None:
        raise claim.closed
    spec = parse(claim.spec)
    if gone := list(_gone(claim)):
        raise SpecError(gone)
    (folder / "data").mkdir(exist_ok=True)
    for dataset in claim.datasets.values():
        if dataset.id not in paths:
            paths[dataset.id] = folder / "data" / f"{dataset.id}.jsonl"
            blobs.get(dataset.blob, paths[dataset.id], claim.keys[dataset.id])
    file = folder / f"{claim.job_id}.json"
    file.write_text(spec.model_dump_json())
    commitments = {
        name: claim.datasets[source.dataset].commitment
        for name, source in spec.data.sources().items()
        if source.source == "upload"
    }
    return {"job": claim.job_id, "spec": str(file), "commitments": commitments}


def _model(model: Model, folder: Path, blobs: Blobs) -> str:
    """Where the model's files are: the folder that was registered, or one made of what a job has left."""
    if model.job_id is None:
        return model.path
    target = folder / "models" / model.id
    for name, facts in model.files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        blobs.link(facts["sha256"], target / name)
    return str(target)


def _gone(claim: Claim) -> Iterator[Problem]:
    for field, model in references.models(claim.spec).items():
        if "id" in model and model["id"] not in claim.models:
            yield Problem(f"{field}.id", model["id"], f"The model '{model['id']}' is not registered any more.")
        elif "id" in model and claim.models[model["id"]].deleted_at is not None:
            yield Problem(f"{field}.id", model["id"], f"The model '{model['id']}' is deleted.")
    for name, upload in references.uploads(claim.spec).items():
        if upload not in claim.datasets:
            yield Problem(f"data.{name}.dataset", upload, f"The data set '{upload}' is not there any more.")


def restore_checkpoint(folder: Path, claim: Claim, blobs: Blobs) -> Path | None:
    """Put the checkpoint to go on from in place. Raises BlobMissing and BlobDamaged."""
    if claim.checkpoint is None:
        return None
    target = folder / "resume"
    target.mkdir()
    for file in claim.checkpoint.files:
        blobs.get(file.digest, target / file.name, claim.seal)
    return target
