"""Where records come from: SOURCES maps a source's name in the spec to the function that reads it."""

from collections.abc import Callable
from typing import Any

from core.data.inputs import Inputs
from core.data.jsonl import read_jsonl, read_upload
from core.data.muse import read_muse
from core.data.saferlhf import read_saferlhf
from core.data.text import read_copyright, read_text
from core.data.tofu import read_tofu
from core.data.toxicity import read_toxic_prompts
from core.data.wmdp import read_wmdp
from core.spec.records import Record

SOURCES: dict[str, Callable[[Any, Inputs], list[Record]]] = {
    "upload": read_upload,
    "jsonl": read_jsonl,
    "tofu": read_tofu,
    "muse": read_muse,
    "wmdp": read_wmdp,
    "pku_saferlhf": read_saferlhf,
    "text": read_text,
    "copyright": read_copyright,
    "toxic_prompts": read_toxic_prompts,
}

__all__ = ["SOURCES", "Inputs"]
