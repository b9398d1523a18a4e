"""Where a set of records comes from: an upload known by its id, a JSON-lines file, or a folder of the TOFU set."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from core.spec.base import FilePath, Spec

Rows = Annotated[int | None, Field(ge=1, description="use only the first so many rows; absent: all")]


class Upload(Spec):
    """A data set uploaded through `POST /datasets`, by its id."""

    source: Literal["upload"] = "upload"
    dataset: str = Field(pattern=r"^ds_[0-9a-z]{8,40}$")
    rows: Rows = None


class JsonLines(Spec):
    """A file of JSON lines, each `{question, answer}`, `{prompt, response}` or `{text}`."""

    source: Literal["jsonl"] = "jsonl"
    path: FilePath
    rows: Rows = None


class Tofu(Spec):
    """A split of the TOFU benchmark, by name, from a local folder of the published files."""

    citation: ClassVar[str] = "arXiv:2401.06121"
    source: Literal["tofu"] = "tofu"
    path: FilePath = Field(description="the folder that holds `forget01.json` and its fellows")
    split: str = Field(pattern=r"^[a-z0-9_]{1,64}$", description="for example forget01_perturbed or retain99")
    rows: Rows = None


SOURCES: dict[str, type[Spec]] = {"upload": Upload, "jsonl": JsonLines, "tofu": Tofu}

Source = Annotated[Upload | JsonLines | Tofu, Field(discriminator="source")]

PromptFormat = Literal["plain", "soul", "llama2", "chat"]


class Data(Spec):
    """The sets of a request, and how a question becomes a prompt."""

    forget: Source
    retain: Source | None = Field(None, description="what must stay; needed by every retain term and utility gate")
    prompt: PromptFormat = Field(
        "plain", description="how a question becomes a prompt; `prompt` and `text` rows are raw"
    )
    max_length: int = Field(512, ge=8, le=131_072, description="tokens of prompt and answer together")

    @model_validator(mode="after")
    def _two_sets(self) -> "Data":
        if self.retain == self.forget:
            raise PydanticCustomError("same_set", "retain is the very set to forget. Give another one, or none.", {})
        return self
