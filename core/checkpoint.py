"""Checkpoints: a folder that counts once its manifest is there and every file has the digest the manifest gives.

Nothing relies on renaming a folder, so the same layout works on any store. A resumed run ends with the same weights as
an undisturbed one, bit for bit on a CPU, on the same machine, build and thread count.
"""

import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.data.encode import EncodedSet
from core.environment import versions
from core.errors import CheckpointError, ModelError
from core.parallel.sharding import spread
from core.report.digest import file_digests
from core.report.schema import Measurement
from core.train import Trainer

Tensors = dict[str, Tensor]

MANIFEST = "manifest.json"
# Derived from the forget set row by row: whoever stores a checkpoint must protect this file as the set itself.
PRIVATE = frozenset({"reference.safetensors"})
# Rows of the scores before, as `core.evaluation.rows` writes them: derived from the sets row by row too.
ROWS = "before-*.parquet"
_FILES = PRIVATE | {"weights.safetensors", "optimizer.safetensors", "state.json"}


@dataclass(frozen=True)
class State:
    """What besides tensors a run needs to go on, and what tells that it is the same run. `seconds`: trained so far."""

    step: int
    spec_digest: str
    input_model: str
    data_check: str
    threads: int
    versions: dict[str, str]
    loss: float | None
    retain_dual: float | None
    curve: list[dict[str, float]]
    before: list[dict[str, Any]]
    seconds: float
    looks: list[dict[str, float]]
    best: int | None
    processes: int = 1


def data_check(sets: Mapping[str, EncodedSet], commitments: Mapping[str, str]) -> str:
    """What ties a checkpoint to its data: an HMAC of the encoded rows, under the sets' keyed commitments where there
    are any, so that a service writes no unkeyed digest of a forget set."""
    key = json.dumps(dict(sorted(commitments.items()))).encode()
    code = hmac.new(key, digestmod=hashlib.sha256)
    for name, data in sets.items():
        code.update(f"{name}:{len(data.examples)}\n".encode())
        for example in data.examples:
            code.update(f"{example.start}:{example.ids}\n".encode())
    return code.hexdigest()


def measurements(dumped: Sequence[Mapping[str, Any]]) -> list[dict[str, Measurement]]:
    """The scores kept in a state, as they were measured of each request."""
    read: TypeAdapter[list[dict[str, Measurement]]] = TypeAdapter(list[dict[str, Measurement]])
    return read.validate_python(list(dumped))


def write(target: Path, state: State, tensors: Mapping[str, Tensors], beside: Sequence[Path]) -> Path:
    """Write the folder completely and return it. `beside`: files that the run has written and needs to go on."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in beside:
        _linked(file, target / file.name)
    for name, own in tensors.items():
        save_file({key: tensor.cpu().contiguous() for key, tensor in own.items()}, target / f"{name}.safetensors")
    (target / "state.json").write_text(json.dumps(asdict(state)))
    files = _files(target)
    for name in files:
        _sync(target / name)
    draft = target / (MANIFEST + ".part")
    draft.write_text(json.dumps({"step": state.step, "files": files}, indent=1))
    _sync(draft)
    draft.replace(target / MANIFEST)
    return target


def is_complete(folder: Path) -> bool:
    """Whether the folder holds a manifest and every file of it, unaltered."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        state = json.loads((folder / "state.json").read_text())
        there = _files(folder)
        listed = {name: there.get(name) for name in _FILES | manifest["files"].keys()}
        return bool(manifest == {"step": state["step"], "files": listed})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError):
        return False


def latest(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step, or None."""
    return next((c for c in sorted(folder.glob("step-*"), reverse=True) if is_complete(c)), None)


def prune(newest: Path, keep: int) -> None:
    """Remove all but the last `keep` checkpoints up to `newest`; later ones too, which a resume found damaged."""
    every = sorted(newest.parent.glob("step-*"))
    kept = [c for c in every if c.name <= newest.name][-keep:]
    for other in every:
        if other not in kept:
            shutil.rmtree(other)


def read_state(folder: Path) -> State:
    """The state of a checkpoint. Raises CheckpointError where it is damaged."""
    if not is_complete(folder):
        raise CheckpointError(f"{folder} is not a complete checkpoint: a file is missing or altered")
    try:
        return State(**json.loads((folder / "state.json").read_text()))
    except (TypeError, ValueError):
        raise CheckpointError(f"{folder} was written by another version of Lethe") from None


def check_same_run(state: State, *, spec_digest: str, input_model: str, data_check: str) -> None:
    """Raises CheckpointError where the checkpoint belongs to another spec, model or data, or to other versions of Lethe
    or of a library: any of them may change a bit of what follows."""
    for what, found, wanted in (
        ("another spec", state.spec_digest, spec_digest),
        ("another model", state.input_model, input_model),
        ("other data", state.data_check, data_check),
        ("other versions", *_differing(state.versions, versions())),
    ):
        if found != wanted:
            raise CheckpointError(
                f"the checkpoint at step {state.step} belongs to {what} ({found[:60]}, now {wanted[:60]}); "
                "use an empty output folder, or the spec and data it was made with"
            )


def _differing(found: Mapping[str, str], wanted: Mapping[str, str]) -> tuple[str, str]:
    names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    then, now = (", ".join(f"{name} {of.get(name, 'absent')}" for name in names) for of in (found, wanted))
    return then, now


def put_back(folder: Path, pattern: str, target: Path) -> None:
    """The files of a checkpoint that lay beside it when it was written, in their place again."""
    for file in folder.glob(pattern):
        target.mkdir(parents=True, exist_ok=True)
        (target / file.name).unlink(missing_ok=True)
        _linked(file, target / file.name)


def _linked(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        # Another file system, or one without links.
        shutil.copy2(file, target)


def restore(folder: Path, trainer: Trainer, state: State) -> None:
    """Put reference, weights, optimizer state and step back; the trainer's model must still be the original."""
    device = trainer.model.device
    trainer.reference.load(load_file(folder / "reference.safetensors"), trainer.model)
    weights = load_file(folder / "weights.safetensors")
    by_name = dict(trained(trainer))
    if weights.keys() != by_name.keys():
        raise CheckpointError(f"{folder} holds the weights of another model")
    with torch.no_grad():
        for name, p in by_name.items():
            p.copy_(spread(weights[name], p))
    for key, tensor in load_file(folder / "optimizer.safetensors").items():
        name, slot = key.rsplit("/", 1)
        p = by_name[name]
        trainer.optimizer.state[p][slot] = spread(tensor, p) if tensor.shape == p.shape else tensor.to(device)
    trainer.step, trainer.loss, trainer.curve = state.step, state.loss, list(state.curve)
    trainer.retain_weight.dual = state.retain_dual


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest's entries for what lies in the folder now."""
    return {
        name: {
            "sha256": digest,
            "size": (folder / name).stat().st_size,
            "private": name in PRIVATE or fnmatch(name, ROWS),
        }
        for name, digest in file_digests(folder).items()
        if name != MANIFEST
    }


def trained(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    """The weights that a checkpoint holds, by name. Of a large model with adapters or few chosen layers nothing else is
    written: the rest is in the model's folder."""
    return ((name, p) for name, p in trainer.model.named_parameters() if p.requires_grad)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
