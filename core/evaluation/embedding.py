"""Embedding accuracy (SOUL, arXiv:2404.18239): whether a generated text says what the answer says, and nothing else.

It does where a sentence-transformers model puts it nearer, by cosine, to the answer than to every perturbed answer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.data.batches import by_length
from core.evaluation.judges import JudgeMissing, failed, folder_of, named
from core.events import StopFlag
from core.spec.evaluation import Beside

# In one pass of the judge; about a quarter as many tokens.
_CHARACTERS = 32_768


def nearest(
    judge: Beside, rows: Sequence[tuple[str, str, Sequence[str]]], device: torch.device, stop: StopFlag
) -> list[bool | None]:
    """Of each (generated text, answer, perturbed answers) whether the text is nearer to the answer than to all others.

    None where there is no perturbed answer; where two are equally near, False. Every distinct text is embedded once.
    Raises JudgeMissing, and Stopped between batches.
    """
    if not any(perturbed for _, _, perturbed in rows):
        return [None] * len(rows)
    compared = (text for made, answer, perturbed in rows if perturbed for text in (made, answer, *perturbed))
    texts = list(dict.fromkeys(compared))
    vectors = dict(zip(texts, _embedded(judge, texts, device, stop), strict=True))

    def near(made: str, answer: str, perturbed: Sequence[str]) -> bool:
        cosines = np.stack([vectors[text] for text in (answer, *perturbed)]) @ vectors[made]
        return bool(cosines[0] > cosines[1:].max())

    return [near(*row) if row[2] else None for row in rows]


def _embedded(judge: Beside, texts: Sequence[str], device: torch.device, stop: StopFlag) -> NDArray[np.float64]:
    """Vectors of length 1: (texts, dimensions)."""
    model = _loaded(judge, device)
    found: dict[int, NDArray[np.float64]] = {}
    for batch in by_length(range(len(texts)), lambda i: len(texts[i]) + 1, _CHARACTERS):
        stop.check()
        try:
            rows = model.encode([texts[i] for i in batch], batch_size=len(batch), show_progress_bar=False)
        except Exception as error:
            # A broken model shows in errors of any type. One too large for the device is no reason to lose the run.
            raise failed(judge, "run", error) from error
        found.update(zip(batch, np.asarray(rows, dtype=np.float64), strict=True))
    vectors = np.stack([found[i] for i in range(len(texts))])
    if not np.isfinite(vectors).all():
        raise JudgeMissing(f"{named(judge)} gives embeddings that are not finite")
    lengths: NDArray[np.float64] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float64).tiny)


def _loaded(judge: Beside, device: torch.device) -> Any:
    try:
        # Takes seconds, and is an optional part of an installation.
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise JudgeMissing("sentence-transformers is not installed: pip install 'lethe[embedding]'") from None
    folder = folder_of(judge)
    try:
        return SentenceTransformer(
            str(folder),
            device=str(device),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        )
    except Exception as error:
        # What a library says to a broken file is of any type: its own, a KeyError, Rust's.
        raise failed(judge, "loaded", error) from error
