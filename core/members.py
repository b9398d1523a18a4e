"""The requests of one run: one as a rule, or several that ask for the same of the same model and share the training.

Training sees the forget records of all of them, one after the other by their jobs' ids. Everything is scored once; each
request is then judged by the rows of its own records alone, under its own gates, as if they had been scored alone.
Attacks are made on each by itself, so that what a report says can be found again by who has that request's data only.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

from core.data.encode import EncodedSet
from core.data.inputs import Inputs
from core.data.sets import Taken, read_forget, read_sets, with_others
from core.data.trained_on import check_records
from core.errors import DataError, LetheError
from core.evaluation.evidence import Rows
from core.evaluation.rows import read_rows, write_rows
from core.evaluation.scorer import Scorer
from core.events import Emit
from core.parallel.peers import Member
from core.report.build import left_in, used
from core.report.schema import DataUsed, Measurement, Report, TrainingDone
from core.spec.gates import Gate
from core.spec.job import JobSpec
from core.spec.records import Record

Scores = list[dict[str, Measurement]]


class Members:
    """All requests of a run, in the order of their jobs' ids. What is given of each is a list in that order."""

    def __init__(self, spec: JobSpec, sharing: Sequence[Member], commitments: Mapping[str, str]) -> None:
        """`sharing`: the requests, where there are several; else `spec` is the only one."""
        self.shared = bool(sharing)
        self.all = sorted(sharing, key=lambda member: member.job) or [Member("", spec, commitments)]
        first = self.all[0].spec
        # What training looks at on its way, it looks at for all: where it may end early, every gate of every one holds.
        self.spec = first.model_copy(update={"gates": _distinct(self.all)}) if self.shared else spec
        self.records: list[range] = []
        self._places: dict[str, Sequence[int]] = {}
        self._kept: list[dict[Any, Any]] = [{} for _ in self.all]

    def read(self, inputs: Inputs) -> Mapping[str, Sequence[Record]]:
        """The sets of the run. Raises DataError and SpecError, `of` the job at whose forget set the fault lies."""
        sets = self._read(inputs) if self.shared else read_sets(self.spec.data, inputs)
        self._places = {name: taken.places for name, taken in sets.items()}
        return sets

    def _read(self, inputs: Inputs) -> dict[str, Taken]:
        own: list[Taken] = []
        for member in self.all:
            with _at(member):
                own.append(read_forget(member.spec.data, inputs)[0])
        forgets = Taken([*chain(*own)], [*chain(*(taken.places for taken in own))])
        sets = with_others(self.spec.data, inputs, {"forget": forgets})
        for member, forget in zip(self.all, own, strict=True):
            with _at(member):
                check_records(member.spec, {**sets, "forget": forget})
        self.records = [range(*ends) for ends in pairwise(accumulate(map(len, own), initial=0))]
        return sets

    def check(self, sets: Mapping[str, EncodedSet]) -> None:
        """Raises DataError, `of` its job, where none of a request's records fits."""
        for member, own in zip(self.all, self.parts(sets), strict=True):
            if not own["forget"].records:
                with _at(member):
                    said = (
                        f"no record of the forget set fits into data.max_length = {member.spec.data.max_length} tokens"
                    )
                    raise DataError(said, param="data.max_length")

    def parts(self, sets: Mapping[str, EncodedSet]) -> list[Mapping[str, EncodedSet]]:
        """The sets as each request has them: its own to forget, all others in common."""
        if not self.shared:
            return [sets]
        return [{**sets, "forget": sets["forget"].part(records)} for records in self.records]

    def used(self, sets: Mapping[str, EncodedSet]) -> list[dict[str, DataUsed]]:
        """The sets as the report of each request tells of them."""
        found = []
        for i, (member, parts) in enumerate(zip(self.all, self.parts(sets), strict=True)):
            places = dict(self._places)
            if self.shared:
                places["forget"] = places["forget"][self.records[i].start : self.records[i].stop]
            # What the draw left of the forget set's records is committed to with them.
            committed = dict(member.commitments)
            if member.spec.data.self_retain and "forget" in committed:
                committed["retain"] = committed["forget"]
            found.append({name: used(part, places[name], committed.get(name)) for name, part in parts.items()})
        return found

    def commitments(self) -> dict[str, str]:
        """The commitments of all, and whose records are which: what a checkpoint of the run is tied to."""
        if not self.shared:
            return dict(self.all[0].commitments)
        tied = {f"{m.job}.{name}": value for m in self.all for name, value in m.commitments.items()}
        return tied | {m.job: f"{r.start}-{r.stop}" for m, r in zip(self.all, self.records, strict=True)}

    def tell(self, emit: Emit, event: str, **fields: Any) -> None:
        """Say of each request, with the digest of its own spec."""
        for member in self.all:
            emit(event, spec_digest=member.spec.digest(), **fields, **self._named(member))

    def measured(self, scorer: Scorer, when: str, step: int) -> Scores:
        """Every metric of each request. Raises what `Scorer.measure` raises."""
        if not self.shared:
            return [scorer.measure(when, step)]
        rows, missing = scorer.scored(when, step)
        benchmarks, forget = scorer.benchmarks(when), scorer.sets["forget"]
        found = []
        for own, records in zip(self.scorers(scorer), self.records, strict=True):
            part: Rows = {**rows, "forget": rows["forget"][forget.rows_of(records)]}
            found.append(own.judged(when, part, missing, benchmarks))
        return found

    def attacked(self, scorer: Scorer) -> Scores:
        """What is measured of each under the attacks. Raises Stopped."""
        return [own.attack() for own in self.scorers(scorer)]

    def scorers(self, scorer: Scorer) -> list[Scorer]:
        """The run's scorer as that of each request."""
        if not self.shared:
            return [scorer]
        return [
            replace(
                scorer,
                spec=member.spec,
                sets=sets,
                emit=partial(scorer.emit, **self._named(member)),
                folder=None
                if scorer.folder is None
                else self.folder(scorer.folder.parent, member) / scorer.folder.name,
                _once=kept,
            )
            for member, sets, kept in zip(self.all, self.parts(scorer.sets), self._kept, strict=True)
        ]

    def folder(self, out: Path, member: Member) -> Path:
        """Where a request's report and what belongs to it go, below the run's folder."""
        return out / "members" / member.job if self.shared else out

    def divide(self, rows: Path, forget: EncodedSet) -> None:
        """Give each request the files of its own rows, from those of the run in this folder."""
        if not self.shared:
            return
        for file in sorted(rows.glob("*.parquet")):
            scores, about = read_rows(file)
            for member, records in zip(self.all, self.records, strict=True):
                own = scores[forget.rows_of(records)] if about["set"] == "forget" else scores
                target = self.folder(rows.parent, member) / rows.name / file.name
                write_rows(target, own, {**about, "spec_digest": member.spec.digest()})

    def training(
        self, done: TrainingDone, sets: Mapping[str, EncodedSet], own: Mapping[str, EncodedSet]
    ) -> TrainingDone:
        """What training did, as one of the requests is told: how many shared it, and nothing else of them."""
        others = len(sets["forget"].records) - len(own["forget"].records)
        return done.model_copy(update={"shared_with": len(self.all) - 1, "shared_rows": others})

    def told(self, out: Path, reports: Sequence[Report]) -> dict[str, Any]:
        """What the last event says: verdict and files of the request, or `members`, a list of them with their jobs."""
        found: list[dict[str, Any]] = []
        for member, report in zip(self.all, reports, strict=True):
            folder = self.folder(out, member)
            files = {"report": str(folder / "report.json"), **left_in(folder)}
            found.append({"verdict": report.verdict.verdict, **files, **self._named(member)})
        return {"members": found} if self.shared else found[0]

    def _named(self, member: Member) -> dict[str, str]:
        return {"job": member.job} if self.shared else {}


def _distinct(members: Sequence[Member]) -> list[Gate]:
    found: list[Gate] = []
    for gate in chain(*(member.spec.gates for member in members)):
        if gate not in found:
            found.append(gate)
    return found


@contextmanager
def _at(member: Member) -> Iterator[None]:
    """Whose fault an error is that is raised within."""
    try:
        yield
    except LetheError as error:
        error.of = member.job
        raise
