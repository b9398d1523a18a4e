"""A checkpoint counts when every byte of it is there and right; what is derived from the forget set is marked."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core import checkpoint
from core.errors import CheckpointError
from tests.core.recording import QUICK, carry_out
from tests.models import Reciter


@pytest.fixture(scope="module")
def kept(unlearnt: Reciter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run's every step."""
    out = tmp_path_factory.mktemp("kept")
    method = {"name": "npo", "retain": "kl"}
    training = {"steps": 5, "batch_size": 2, "checkpoint_every": 1}
    carry_out(unlearnt.spec(method=method, training=training, evaluation=QUICK), out, keep_checkpoints=None)
    return out / "checkpoints"


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "checkpoints"))


def test_every_step_is_there_and_the_last_is_taken(kept: Path) -> None:
    assert [c.name for c in sorted(kept.iterdir())] == [f"step-0000000{step}" for step in (1, 2, 3, 4)]
    latest = checkpoint.latest(kept)
    assert latest is not None
    assert checkpoint.read_state(latest).step == 4


def test_the_manifest_lists_every_file_and_marks_what_is_private(kept: Path) -> None:
    folder = kept / "step-00000003"
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    assert manifest["step"] == 3
    assert {*manifest["files"], checkpoint.MANIFEST} == {file.name for file in folder.iterdir()}
    private = [name for name, entry in manifest["files"].items() if entry["private"]]
    assert sorted(private) == ["before-forget.parquet", "before-retain.parquet", "reference.safetensors"]
    for name, entry in manifest["files"].items():
        assert entry["size"] == (folder / name).stat().st_size
    # One number or one row of states for each row of the forget set: it stands nowhere else.
    assert load_file(folder / "reference.safetensors")["sums/forget"].shape == (6,)
    assert all(t.shape != (6,) for t in load_file(folder / "optimizer.safetensors").values())


FILES = ["weights.safetensors", "optimizer.safetensors", "reference.safetensors", "state.json", checkpoint.MANIFEST]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("missing", [False, True], ids=["flipped", "missing"])
def test_one_altered_byte_or_a_missing_file(name: str, missing: bool, folder: Path) -> None:
    newest = folder / "step-00000004"
    whole = (newest / name).read_bytes()
    if missing:
        (newest / name).unlink()
    else:
        middle = len(whole) // 2
        (newest / name).write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert checkpoint.latest(folder) == folder / "step-00000003"
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        checkpoint.read_state(newest)
    (newest / name).write_bytes(whole)
    assert checkpoint.latest(folder) == newest


def test_no_byte_of_the_manifest_can_be_altered_unseen(folder: Path) -> None:
    manifest = folder / "step-00000004" / checkpoint.MANIFEST
    whole = manifest.read_bytes()
    for i in range(0, len(whole), 3):
        manifest.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        assert not checkpoint.is_complete(manifest.parent), whole[max(0, i - 20) : i + 20]


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"files": []}', '{"step": 4, "files": {}}', "\xff"])
def test_a_manifest_that_is_something_else(content: str, folder: Path) -> None:
    (folder / "step-00000004" / checkpoint.MANIFEST).write_text(content, "latin-1")
    assert checkpoint.latest(folder) == folder / "step-00000003"


def test_none_at_all(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "never") is None
    with pytest.raises(CheckpointError):
        checkpoint.read_state(tmp_path)


def test_of_another_version(folder: Path) -> None:
    newest = folder / "step-00000004"
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps(state | {"tomorrow": 1}))
    manifest = json.loads((newest / checkpoint.MANIFEST).read_text())
    content = (newest / "state.json").read_bytes()
    manifest["files"]["state.json"] |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (newest / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="another version of Lethe"):
        checkpoint.read_state(newest)


def test_prune_keeps_the_newest(folder: Path) -> None:
    checkpoint.prune(folder / "step-00000004", keep=2)
    assert sorted(c.name for c in folder.iterdir()) == ["step-00000003", "step-00000004"]


def test_prune_never_keeps_what_a_resume_passed_over_instead_of_what_it_has_just_written(folder: Path) -> None:
    # Steps 3 and 4 were damaged, the run went on from 1 and has just written 2.
    checkpoint.prune(folder / "step-00000002", keep=2)
    assert sorted(c.name for c in folder.iterdir()) == ["step-00000001", "step-00000002"]


def test_the_weights_of_a_checkpoint_are_those_of_the_step(kept: Path) -> None:
    steps = [load_file(kept / f"step-0000000{step}" / "weights.safetensors") for step in (1, 2)]
    name = "model.norm.weight"
    assert steps[0].keys() == steps[1].keys()
    assert not torch.equal(steps[0][name], steps[1][name])
