"""A model folder before it is registered: safetensors only, no code to be trusted, no way out of the folder."""

import json
import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from api.paths import confined, listed
from core.errors import ModelError
from core.report.digest import file_digests, model_digest

# Formats that can run code when they are read, or that nothing here reads.
REFUSED = (
    ".bin", ".ckpt", ".dill", ".gguf", ".h5", ".joblib", ".msgpack", ".npy", ".npz", ".onnx", ".ot", ".pickle", ".pkl",
    ".pt", ".pth",
)  # fmt: skip
_CLASS = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_MOST_JSON = 64 << 20
_MOST_WEIGHTS = 2**62  # a header may claim anything; no database counts further
_MOST_HEADER = 100_000_000  # what safetensors itself allows


@dataclass(frozen=True)
class ModelFolder:
    """What is recorded about a folder; `files` maps names to `{"sha256": hex, "size": bytes}`."""

    path: Path
    architecture: str
    files: dict[str, dict[str, Any]]
    digest: str
    parameters: int


def inspect(path: str, roots: Sequence[Path]) -> ModelFolder:
    """Check a folder and hash every file in it, which takes a second a gigabyte or so.

    Raises ModelError with the first thing that keeps it from being used.
    """
    folder = confined(path, roots)
    if folder is None:
        raise _refusal(f"{path!r} is not open to requests. {listed(roots, 'LETHE_MODEL_ROOTS')}")
    try:
        if not folder.is_dir():
            raise ModelError(f"There is no folder {folder}.")
        architecture, parameters = _check(folder, _files(folder))
        digests = file_digests(folder)
        files = {name: {"sha256": digest, "size": (folder / name).stat().st_size} for name, digest in digests.items()}
    except OSError as error:
        raise _refusal(f"{folder} cannot be read: {error.strerror}.") from None
    except ModelError as error:
        raise _refusal(error.message) from None
    return ModelFolder(folder, architecture, files, model_digest(digests), parameters)


def _refusal(message: str) -> ModelError:
    return ModelError(message, param="path")


def _files(folder: Path) -> list[str]:
    """Names of all files, before one of them is opened: opening a pipe waits for whoever writes into it.

    Raises ModelError for what is no regular file, for names that are not UTF-8, and for refused formats.
    """
    names = []
    for parent, folders, files in os.walk(folder):
        for entry in (*folders, *files):
            path = Path(parent, entry)
            name = path.relative_to(folder).as_posix()
            if not _is_text(name):
                raise ModelError(f"The file name {name!r} is not UTF-8.")
            if path.is_symlink():
                inside = path.resolve().is_relative_to(folder)
                where = "within the folder" if inside else "out of the folder"
                raise ModelError(
                    f"{name} is a symbolic link that leads {where}. A model must hold the files themselves."
                )
            kind = path.lstat().st_mode
            if stat.S_ISREG(kind):
                names.append(name)
            elif not stat.S_ISDIR(kind):
                raise ModelError(f"{name} is neither a file nor a folder.")
    for name in names:
        if name.lower().endswith(REFUSED):
            raise ModelError(
                f"{name} is in a format that is refused ({', '.join(REFUSED)}). Weights must be .safetensors files."
            )
    return names


def _check(folder: Path, names: Sequence[str]) -> tuple[str, int]:
    """The architecture that config.json names, and how many weights the files hold. Raises ModelError."""
    if "config.json" not in names:
        raise ModelError("config.json is missing.")
    configs = {name: _object(folder, name) for name in names if "/" not in name and name.endswith("config.json")}
    for name, config in configs.items():
        if "auto_map" in config:
            raise ModelError(f"{name} has an 'auto_map', which asks for code from the folder to be run. Remove it.")
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        raise ModelError("There is no .safetensors file in the folder.")
    parameters = 0
    for name in weights:
        with (folder / name).open("rb") as file:
            parameters += _counted(_header(file, name), name)
    named = configs["config.json"].get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str) or not _CLASS.fullmatch(named[0]):
        raise ModelError(
            "config.json names no architecture: 'architectures' must be a list of class names, "
            "each of at most 200 letters, digits and underscores."
        )
    return named[0], parameters


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(folder: Path, name: str) -> dict[str, Any]:
    with (folder / name).open("rb") as file:
        content = file.read(_MOST_JSON + 1)
    if len(content) > _MOST_JSON:
        raise ModelError(f"{name} is larger than {_MOST_JSON} bytes.")
    return _decoded(content, f"{name} is not a JSON object.")


def _header(file: BinaryIO, name: str) -> dict[str, Any]:
    """What makes this a safetensors file by content: eight bytes of length, then so many bytes of JSON."""
    length = int.from_bytes(file.read(8), "little")
    if length > _MOST_HEADER:
        raise ModelError(f"{name} is not a safetensors file.")
    return _decoded(file.read(length), f"{name} is not a safetensors file.")


def _counted(header: Mapping[str, Any], name: str) -> int:
    """Weights of all tensors that the header lists."""
    count = 0
    for key, tensor in header.items():
        shape = tensor.get("shape") if isinstance(tensor, dict) else None
        if key == "__metadata__":
            continue
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise ModelError(f"{name} is not a safetensors file.")
        count += math.prod(shape)
    return min(count, _MOST_WEIGHTS)


def _decoded(content: bytes, otherwise: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (RecursionError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise ModelError(otherwise)
    return value
