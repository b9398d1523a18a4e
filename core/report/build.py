"""Puts a report together from what a run measured; adds the verdict and the plain words on what it does not prove."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from core.report.digest import model_digest
from core.report.lasting import Lasting
from core.report.schema import NO_SERVICE, Absent, DataUsed, Environment, Measurement, Report, TrainingDone
from core.report.verdict import judge
from core.spec.job import JobSpec

LIMITATIONS = (
    "Approximate unlearning is measured, not proven: it is no certified removal.",
    "Intervals are over rows of the sets used; they do not cover another seed or another set.",
)
_ONE_WORDING = "The metrics speak of the forget set as given; other wordings of the same facts were not tried."
_NO_ATTACK = "No attack that tries to bring the knowledge back was run."
_SOME_ATTACKS = "Attacks were tried as the spec says, and no others; a stronger one may bring more back."
_NO_HOLDOUT = "Without a holdout set nothing says whether the forget set is told from text never seen."
_UNCHANGED = "The weights were not changed: whoever holds them holds what they know."
_SHARED = (
    "Training was shared: it forgot {0.shared_rows} rows of other requests ({0.shared_with}) too. Steps, losses and "
    "looks are of all together, every metric and the verdict of this request alone."
)
_UNCHANGING = frozenset({"guard", "origin"})
NO_KEY = Absent(absent="the set was no upload to the service: it has no key of its own")


class Encoded(Protocol):
    """What of an encoded set is told; `core.data.encode.EncodedSet` is one."""

    @property
    def examples(self) -> Sequence[object]: ...
    @property
    def answer_tokens(self) -> int: ...
    @property
    def too_long(self) -> Sequence[int]: ...


def build(
    spec: JobSpec,
    *,
    started_at: str,
    finished_at: str,
    input_model: str,
    output_files: Mapping[str, str],
    sets: Mapping[str, DataUsed],
    before: Mapping[str, Measurement],
    after: Mapping[str, Measurement],
    training: TrainingDone,
    environment: Environment,
    earlier: Lasting | None = None,
) -> Report:
    """Times are RFC 3339 UTC; `earlier` is what was found of earlier jobs, absent where nothing knows of any."""
    verdict = judge(spec.gates, before, after, unseen(sets["forget"]))
    return Report(
        spec=spec.model_dump(mode="json"),
        spec_digest=spec.digest(),
        seed=spec.seed,
        started_at=started_at,
        finished_at=finished_at,
        input_model=input_model,
        output_model=model_digest(output_files),
        output_files=dict(output_files),
        forget=sets["forget"],
        retain=sets.get("retain") or Absent(absent="no retain set was given"),
        beside={name: part for name, part in sets.items() if name not in ("forget", "retain")},
        before=dict(before),
        after=dict(after),
        training=training,
        earlier=list(earlier.removals) if earlier else NO_SERVICE,
        verdict=earlier.applied(verdict) if earlier else verdict,
        environment=environment,
        limitations=[
            *limitations(spec),
            *([_UNCHANGED] if spec.method.name in _UNCHANGING else []),
            *([_SHARED.format(training)] if training.shared_with else []),
            *(earlier.limitations if earlier else []),
        ],
    )


def used(data: Encoded, places: Sequence[int], commitment: str | None = None) -> DataUsed:
    """A set as it was used. `places` are where its records stand among those of its source, ascending."""
    return DataUsed(
        rows=len(data.examples),
        answer_tokens=data.answer_tokens,
        taken=_runs(places),
        too_long=[places[i] for i in data.too_long],
        commitment=commitment or NO_KEY,
        committed=NO_KEY if commitment is None else NO_SERVICE,
    )


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for place in places:
        if found and found[-1][1] == place - 1:
            found[-1] = (found[-1][0], place)
        else:
            found.append((place, place))
    return found


def unseen(forget: DataUsed) -> str | None:
    """A sentence on the forget records that did not fit, where there are any."""
    if not forget.too_long:
        return None
    count = len(forget.too_long)
    return f"{count} records to forget did not fit into data.max_length: they were neither forgotten nor measured."


def limitations(spec: JobSpec) -> list[str]:
    """What the evidence of such a request does not show, in plain words."""
    attacks = [attack.label for attack in spec.evaluation.attacks]
    said = [*LIMITATIONS, _SOME_ATTACKS if attacks else _NO_ATTACK]
    said += [] if "paraphrase" in attacks else [_ONE_WORDING]
    said += [] if spec.data.holdout is not None else [_NO_HOLDOUT]
    return said


def now() -> str:
    """The time as a report tells it: RFC 3339, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def left_in(out: Path) -> dict[str, list[str]]:
    """The files of rows and the plots in a run's folder, by their paths in it, as its last event tells them."""
    patterns = {"rows": "rows/*.parquet", "plots": "plots/*.svg"}
    return {kind: sorted(str(file.relative_to(out)) for file in out.glob(p)) for kind, p in patterns.items()}
