"""Where a set of records comes from: an upload, a file, or a published set by hub id or local folder.

Which files of a published set are meant is told by `places`, in the naming that `core.spec.layouts` reads. `Data` is
the sets of a request together.
"""

import abc
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from core.spec.base import FilePath, Spec, conflict
from core.spec.layouts import Places
from core.spec.metrics import SETS

Rows = Annotated[int | None, Field(ge=1, description="use only the first so many rows; absent: all")]
_COMMIT = "0123456789abcdef"
# Letters of names that become part of a path: no separator, and nothing that leads upwards.
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}$"
SPLIT = r"^[a-z0-9_]{1,64}$"
COLUMN = r"^[^\x00]{1,200}$"
UPLOAD_ID = r"^ds_[0-9a-z]{8,40}$"
HUB_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,95})?$"


def _pinned(revision: str) -> str:
    if len(revision) != 40 or set(revision) - set(_COMMIT):
        raise PydanticCustomError(
            "unpinned", "Input should be a full commit hash of 40 hex digits; a branch, a tag or a short hash may move"
        )
    return revision


Revision = Annotated[str, AfterValidator(_pinned), Field(json_schema_extra={"pattern": "^[0-9a-f]{40}$"})]
HubId = Annotated[str, Field(pattern=HUB_ID)]


class Upload(Spec):
    """A data set uploaded through `POST /datasets`, by its id."""

    source: Literal["upload"] = "upload"
    dataset: str = Field(pattern=UPLOAD_ID)
    rows: Rows = None


class JsonLines(Spec):
    """A file of JSON lines, each `{question, answer}`, `{prompt, response}` or `{text}`."""

    source: Literal["jsonl"] = "jsonl"
    path: FilePath
    rows: Rows = None


class Located(Spec):
    """Files of the hub at a pinned revision, or a local folder of the same files."""

    path: FilePath | None = Field(None, description="a local folder in the layout of the hub; either this or hub")
    hub: HubId | None = Field(None, description="an id of the hub; needs a revision")
    revision: Revision | None = Field(None, description="full commit hash, 40 hex digits")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise conflict("path", self.path, "Give exactly one of path (a local folder) and hub (with a revision).")
        if (self.hub is None) != (self.revision is None):
            needs = "hub needs a revision: a full commit hash." if self.hub else "revision belongs to hub, not to path."
            raise conflict("revision", self.revision, needs)
        return self


class Published(Located):
    """A set in a published layout: a data set of the hub at a pinned revision, or a local folder of the same files."""

    # Whether `path` may also be a single file of such rows.
    or_file: ClassVar[bool] = False

    source: str
    rows: Rows = None

    @abc.abstractmethod
    def places(self) -> Places:
        """Where the split's files may lie, in the order in which to look."""


class Tofu(Published):
    """A split of the TOFU benchmark (`locuslab/TOFU`), by name."""

    citation: ClassVar[str] = "arXiv:2401.06121"
    source: Literal["tofu"] = "tofu"
    split: str = Field(pattern=SPLIT, description="for example forget01_perturbed or retain99")

    def places(self) -> Places:
        """One flat folder of JSON files; a copy saved by `datasets` has a folder a split instead."""
        return (("", self.split),), ((self.split, "train"),)


class Muse(Published):
    """A split of the MUSE benchmark: `muse-bench/MUSE-News` or `muse-bench/MUSE-Books`."""

    citation: ClassVar[str] = "arXiv:2407.06460"
    source: Literal["muse"] = "muse"
    config: Literal["knowmem", "privleak", "raw", "scal", "sust", "train", "verbmem"] = "raw"
    split: str = Field(pattern=SPLIT, description="for example forget, retain1 or holdout; forget_qa")

    def places(self) -> Places:
        """A folder a config, a file a split."""
        return (((self.config, self.split),),)


class Wmdp(Published):
    """A corpus of WMDP (`cais/wmdp-corpora`) or a set of its multiple-choice questions (`cais/wmdp`).

    Published are bio-retain, cyber-forget and cyber-retain; bio-forget is given on request, to be read from `path`.
    """

    citation: ClassVar[str] = "arXiv:2403.03218"
    source: Literal["wmdp"] = "wmdp"
    config: Literal[
        "bio-forget-corpus",
        "bio-retain-corpus",
        "cyber-forget-corpus",
        "cyber-retain-corpus",
        "wmdp-bio",
        "wmdp-chem",
        "wmdp-cyber",
    ]

    @property
    def multiple_choice(self) -> bool:
        """Whether rows are questions with choices, not text."""
        return not self.config.endswith("-corpus")

    def places(self) -> Places:
        """A folder a config on the hub; one file each in the archive of the corpora, two of them under other names."""
        if self.multiple_choice:
            return (((self.config, "test"),),)
        archived = {"bio-forget-corpus": "bio_remove_dataset", "bio-retain-corpus": "bio_retain_dataset"}
        names = (self.config, archived.get(self.config, self.config))
        return ((self.config, "train"),), *((("", name),) for name in dict.fromkeys(names))


class SafeRlhf(Published):
    """Prompts with safe and unsafe responses from PKU-SafeRLHF (`PKU-Alignment/PKU-SafeRLHF`)."""

    citation: ClassVar[str] = "arXiv:2406.15513"
    source: Literal["pku_saferlhf"] = "pku_saferlhf"
    config: Literal["default", "alpaca-7b", "alpaca2-7b", "alpaca3-8b"] = "default"
    split: Literal["train", "test"] = "train"
    response: Literal["unsafe", "safe", "safer", "better"] = Field(
        "unsafe", description="every unsafe response (to forget), every safe one (to retain), or the preferred of two"
    )

    def places(self) -> Places:
        """A folder a model that answered; the default config is all three."""
        folders = {"alpaca-7b": "Alpaca-7B", "alpaca2-7b": "Alpaca2-7B", "alpaca3-8b": "Alpaca3-8B"}
        wanted = folders if self.config == "default" else {self.config: folders[self.config]}
        published = tuple((f"data/{folder}", self.split) for folder in wanted.values())
        return published, tuple((name, self.split) for name in wanted), (("data", self.split),), (("", self.split),)


class _Plain(Published):
    """A split of any set in the hub's usual layout, or one file."""

    or_file: ClassVar[bool] = True
    config: str | None = Field(None, pattern=NAME, description="the folder of a config, for example wikitext-2-raw-v1")
    split: str = Field("train", pattern=NAME)

    def places(self) -> Places:
        """The config's folder, or `data`, or the top."""
        if self.config is not None:
            return (((self.config, self.split),),)
        return (("data", self.split),), (("plain_text", self.split),), (("", self.split),)


class Text(_Plain):
    """Text by the row, as in C4 (`allenai/c4`), WikiText (`Salesforce/wikitext`) and BookCorpus; no blank rows."""

    citation: ClassVar[str] = "arXiv:1910.10683, arXiv:1609.07843, arXiv:1506.06724"
    source: Literal["text"] = "text"
    column: str = Field("text", pattern=COLUMN, description="the column that holds the text")


class ToxicPrompts(_Plain):
    """RealToxicityPrompts (`allenai/real-toxicity-prompts`): beginnings of sentences, and how they went on."""

    citation: ClassVar[str] = "arXiv:2009.11462"
    source: Literal["toxic_prompts"] = "toxic_prompts"
    split: str = Field("prompts", pattern=NAME, description="published is one file, prompts.jsonl")


class Copyright(_Plain):
    """Passages as `{prompt, response}`: the beginning of a protected text and how it goes on."""

    citation: ClassVar[str] = "arXiv:2404.18239"
    source: Literal["copyright"] = "copyright"
    raw: bool = Field(True, description="use prompts as they stand; false: put them through data.prompt, as SOUL does")


SOURCES: dict[str, type[Spec]] = {
    "upload": Upload,
    "jsonl": JsonLines,
    "tofu": Tofu,
    "muse": Muse,
    "wmdp": Wmdp,
    "pku_saferlhf": SafeRlhf,
    "text": Text,
    "copyright": Copyright,
    "toxic_prompts": ToxicPrompts,
}

Source = Annotated[
    Upload | JsonLines | Tofu | Muse | Wmdp | SafeRlhf | Text | Copyright | ToxicPrompts,
    Field(discriminator="source"),
]

PromptFormat = Literal["plain", "soul", "llama2", "chat"]


class Data(Spec):
    """The sets of a request, and how a question becomes a prompt."""

    forget: Source
    retain: Source | None = Field(None, description="what must stay; needed by every retain term and utility gate")
    holdout: Source | None = Field(
        None, description="rows like those to forget that the model has never seen; needed by every membership gate"
    )
    real_authors: Source | None = Field(None, description="TOFU's real authors, for its model utility")
    world_facts: Source | None = Field(None, description="TOFU's world facts, for its model utility")
    verbatim: Source | None = Field(None, description="MUSE's verbmem, the texts to forget")
    knowledge: Source | None = Field(None, description="MUSE's knowmem, questions on what to forget")
    retain_knowledge: Source | None = Field(None, description="MUSE's knowmem, questions on what to keep")
    seen: Source | None = Field(None, description="passages that the model was trained on, to be continued")
    unseen: Source | None = Field(None, description="passages that it was not trained on, to be continued")
    text: Source | None = Field(None, description="plain text, for perplexity")
    harm_prompts: Source | None = Field(None, description="prompts that ask for something unsafe")
    toxic_prompts: Source | None = Field(None, description="beginnings that toxic text may follow")
    forget_ratio: float = Field(1.0, gt=0, le=1, description="share of the rows of `forget` to forget, drawn by `seed`")
    self_retain: bool = Field(False, description="the rows of `forget` that are not drawn are the retain set")
    seed: int = Field(0, ge=0, lt=2**31, description="of the draw; another than the run's, which only orders rows")
    prompt: PromptFormat = Field(
        "plain", description="how a question becomes a prompt; `prompt` and `text` rows are raw"
    )
    max_length: int = Field(512, ge=8, le=131_072, description="tokens of prompt and answer together")

    @model_validator(mode="after")
    def _two_sets(self) -> "Data":
        for name in ("retain", "holdout"):
            other = getattr(self, name)
            if other is not None and same_set(other, self.forget):
                raise conflict(name, other.model_dump(mode="json", exclude_none=True), SAME_SET.format(name))
        return self

    @model_validator(mode="after")
    def _something_left_to_retain(self) -> "Data":
        if self.self_retain and self.retain is not None:
            raise conflict("self_retain", True, "self_retain makes the retain set. Give either it or retain.")
        if self.self_retain and self.forget_ratio == 1:
            said = "self_retain needs a forget_ratio below 1, or nothing is retained."
            raise conflict("self_retain", True, said)
        return self

    def sources(self) -> "dict[str, Source]":
        """The sets that are given, by name, those to forget first."""
        every = {name: getattr(self, name) for name in SETS}
        return {name: source for name, source in every.items() if source is not None}

    @property
    def given(self) -> frozenset[str]:
        """The names of the sets that there will be."""
        return frozenset({*self.sources(), *(("retain",) if self.has_retain else ())})

    @property
    def has_retain(self) -> bool:
        """Whether there is a retain set: one of its own, or the rest of the forget set."""
        return self.retain is not None or self.self_retain


SAME_SET = "{} is the very set to forget. Give another one, or none."


def same_set(one: Source, other: Source) -> bool:
    """Whether both name one set, be it in other numbers of rows."""
    return one.model_copy(update={"rows": None}) == other.model_copy(update={"rows": None})
