"""Models that judge texts: a local folder, or a pinned commit of the hub; safetensors only, and never code of theirs.

With HF_HUB_OFFLINE=1 what the hub's cache holds is all there is. A judge that cannot be had stops no run: its metrics
are absent, with the reason.
"""

import os
from pathlib import Path

from core.spec.evaluation import Beside

# What a model needs to be loaded; weights for other runtimes lie in folders of their own.
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_OTHER_RUNTIMES = ["onnx/*", "openvino/*"]


class JudgeMissing(Exception):
    """A judge that cannot be had. Its text is the reason, as the metric's `Absent` gives it."""


def folder_of(judge: Beside) -> Path:
    """The judge's folder on this machine, fetched into the hub's cache if need be.

    Raises JudgeMissing where it cannot be had, or its weights are not in safetensors.
    """
    folder = Path(judge.path).absolute() if judge.path is not None else _fetched(judge)
    # Path.is_dir raises for a name that is too long.
    if not os.path.isdir(folder):  # noqa: PTH112
        raise JudgeMissing(f"there is no folder {folder}")
    if any(folder.rglob("adapter_config.json")):
        # It would name a base model, which may lie anywhere.
        raise JudgeMissing(f"{named(judge)} holds adapters, which must be merged into their model first")
    # Looked for at every depth: a sentence-transformers model has a folder for each of its modules.
    if not any(folder.rglob("*.safetensors")):
        raise JudgeMissing(f"{named(judge)} holds no *.safetensors; other weight formats are never loaded")
    pickled = [file for file in folder.rglob("pytorch_model*.bin") if not any(file.parent.glob("*.safetensors"))]
    if pickled:
        inner = pickled[0].relative_to(folder)
        raise JudgeMissing(f"{named(judge)} holds {inner} and no safetensors of it; other formats are never loaded")
    return folder


def named(judge: Beside) -> str:
    """The judge as a reason names it."""
    return str(judge.path) if judge.path is not None else f"{judge.hub} at {judge.revision}"


def failed(judge: Beside, doing: str, error: Exception) -> JudgeMissing:
    """What a library said while `doing` something with the judge, as a reason of one line."""
    said = (str(error).strip().splitlines() or [""])[0]
    return JudgeMissing(f"{named(judge)} cannot be {doing}: {type(error).__name__}{f': {said}' if said else ''}"[:500])


def _fetched(judge: Beside) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert judge.hub is not None
    try:
        return Path(
            snapshot_download(
                judge.hub, revision=judge.revision, allow_patterns=_FILES, ignore_patterns=_OTHER_RUNTIMES
            )
        )
    except LocalEntryNotFoundError:
        said = "it is not in the hub's cache here, and the hub cannot be reached"
        raise JudgeMissing(f"{named(judge)}: {said}") from None
    except Exception as error:
        # What a library says to a broken connection is of any type: its own, its HTTP client's, the system's.
        raise failed(judge, "fetched", error) from None
