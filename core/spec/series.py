"""SeriesSpec: one request with several forget sets, for MUSE's scalability and sustainability (arXiv:2407.06460).

It is written as a request whose `data.forget` is a list of sources. `series` says what they are: `scalability`: growing
sets, each forgotten by the model as given; `sustainability`: requests one after another, each to the model that the one
before delivered. MUSE published them as `scal` and `sust`, splits `forget_1` to `forget_4`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from core.errors import Problem, SpecError
from core.spec.base import nearest, sendable, shown
from core.spec.job import JobSpec, digest_of
from core.spec.job import parse as parse_request
from core.spec.models import LocalModel
from core.spec.sources import Source, same_set

Kind = Literal["scalability", "sustainability"]
KINDS: tuple[str, ...] = get_args(Kind)
_MOST = 100


@dataclass(frozen=True)
class SeriesSpec:
    """What was asked, as a whole request for each forget set; all but `data.forget` is the same in each."""

    kind: Kind
    requests: tuple[JobSpec, ...]

    @property
    def one_after_another(self) -> bool:
        """Whether a request begins at the model that the one before it delivered."""
        return self.kind == "sustainability"

    def request(self, i: int, before: Path) -> JobSpec:
        """The request at this position, where the one before it leaves its model in the folder `before`."""
        asked = self.requests[i]
        if i == 0 or not self.one_after_another:
            return asked
        return asked.model_copy(update={"model": LocalModel(path=str(before))})

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the resolved series, as 64 hex digits."""
        return digest_of({"series": self.kind, "requests": [asked.model_dump(mode="json") for asked in self.requests]})


def parse(data: Any) -> SeriesSpec:
    """Read a series from decoded JSON. Raises SpecError with every problem found."""
    if not isinstance(data, dict) or not isinstance(data.get("data"), dict):
        # No series either way; what is wrong with it as a request is wrong with it.
        parse_request(_without_kind(data))
        raise AssertionError("a request without data is refused")
    problems: list[Problem] = []
    kind: Any = data.get("series")
    sources = data["data"].get("forget")
    if kind not in KINDS:
        problems.append(_unknown_kind(kind))
    if not isinstance(sources, list) or not 2 <= len(sources) <= _MOST:
        said = f"Input should be a list of 2 to {_MOST} sources (got {shown(sources)})."
        raise SpecError([*problems, Problem("data.forget", sendable(sources), said)])
    requests = []
    for i, source in enumerate(sources):
        try:
            requests.append(parse_request({**_without_kind(data), "data": {**data["data"], "forget": source}}))
        except SpecError as error:
            # What is wrong with all of them is told once.
            problems += [p for p in (_of_set(i, found) for found in error.problems) if p not in problems]
    if not problems:
        problems = list(_not_together(kind, requests))
    if problems:
        raise SpecError(problems)
    return SeriesSpec(kind, tuple(requests))


def _without_kind(data: Any) -> Any:
    return {key: value for key, value in data.items() if key != "series"} if isinstance(data, dict) else data


def _unknown_kind(kind: Any) -> Problem:
    if kind is None:
        return Problem("series", None, f"This field is required.{nearest('', KINDS)}")
    word = kind if isinstance(kind, str) else ""
    return Problem("series", sendable(kind), f"Unknown series {shown(kind)}.{nearest(word, KINDS)}")


def _of_set(i: int, problem: Problem) -> Problem:
    """The problem, by the place of its set in the list."""
    head, at, rest = problem.param.partition("data.forget")
    return Problem(f"data.forget.{i}{rest}", problem.value, problem.message) if at and not head else problem


def _not_together(kind: Kind, requests: Sequence[JobSpec]) -> list[Problem]:
    """What each request may ask, but not a series of them."""
    found = []
    sources = [asked.data.forget for asked in requests]
    for i, source in enumerate(sources):
        twin = next((j for j in range(i) if _again(kind, sources[j], source)), None)
        if twin is not None:
            said = f"This is the set of data.forget.{twin} once more. Allowed: each set once."
            value = source.model_dump(mode="json", exclude_none=True)
            found.append(Problem(f"data.forget.{i}", value, said))
    first = requests[0]
    retrained, adapter = first.evaluation.retrained, first.training.adapter
    if retrained is not None and retrained.rows is not None:
        said = "Rows were scored on one forget set, and a series has several. Allowed: evaluation.retrained.model."
        found.append(Problem("evaluation.retrained.rows", retrained.rows, said))
    if kind == "sustainability" and adapter is not None and adapter.deliver == "adapter":
        said = "The next request needs a complete model to begin at. Allowed in a series 'sustainability': 'merged'."
        found.append(Problem("training.adapter.deliver", "adapter", said))
    return found


def _again(kind: Kind, one: Source, other: Source) -> bool:
    # Growing sets may well be one source in growing numbers of rows.
    return one == other if kind == "scalability" else same_set(one, other)
