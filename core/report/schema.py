"""The report: what was asked, what was measured before and after, and the verdict. No field is silently missing.

A field that could not be filled holds an `Absent` with the reason. Forget records never appear here, in any form.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

VERSION: Final = "1"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(BaseModel):
    """Base of the report's parts: nothing unknown, nothing infinite, nothing changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Absent(Part):
    """What stands in place of a value that does not exist, and why."""

    absent: str = Field(min_length=1)


class Measured(Part):
    """A metric's value over `rows` rows, with the 95% bootstrap interval; both ends are null where there is none, as
    of a p-value."""

    value: float
    rows: int = Field(ge=1)
    low: float | None
    high: float | None


Measurement = Measured | Absent


class GateResult(Part):
    """One gate applied. `outcome` is unmeasured where the metric, or its interval, could not settle it."""

    gate: dict[str, Any]
    outcome: Literal["held", "failed", "unmeasured"]
    observed: float | Absent
    reason: str


class Verdict(Part):
    """`passed`: all gates hold. `not_passed`: one failed. `inconclusive`: one unmeasured, or none about forgetting."""

    verdict: Literal["passed", "not_passed", "inconclusive"]
    reasons: list[str]
    gates: list[GateResult]


Place = Annotated[int, Field(ge=0)]


class DataUsed(Part):
    """A set as it was used, and its keyed commitment.

    `taken` are the records that the request drew from the set's source, by their places in it from 0, as runs of which
    first and last are told; those of them in `too_long` did not fit and were left out. `rows` counts what was made of
    the others: of a text longer than `data.max_length` every piece is a row. The commitment is to `committed` records,
    all that were uploaded."""

    rows: int
    answer_tokens: int
    taken: list[tuple[Place, Place]]
    too_long: list[Place]
    commitment: Sha256 | Absent
    committed: int | Absent

    @property
    def records(self) -> int:
        """How many records were taken."""
        return sum(last - first + 1 for first, last in self.taken)

    def uses(self, place: int) -> bool:
        """Whether the source's record at this place was used."""
        return place not in self.too_long and any(first <= place <= last for first, last in self.taken)


class TrainingDone(Part):
    """What training did. `seconds` adds up over all attempts that this one goes on from; a resumed run says from which
    step. `delivered_step` is the step whose weights are delivered, `looks` what was seen along the way.

    `shared_with` other requests took part in the same training, which forgot `shared_rows` rows of theirs too: then
    steps, losses and looks are those of all together. Everything else in a report is of its own request alone.
    """

    steps: int
    planned_steps: int
    delivered_step: int
    stopped_early: bool
    resumed_from: int | Absent
    seconds: float
    seconds_to_first_step: float | Absent
    final_loss: float | Absent
    clip_fraction: float | Absent
    curve: list[dict[str, float]]
    looks: list[dict[str, float]]
    shared_with: int = 0
    shared_rows: int = 0


class Environment(Part):
    """Where it ran: enough to repeat it. `threads` and memory are each process's own."""

    python: str
    platform: str
    device: str
    threads: int
    processes: int = 1
    memory_bytes: int
    versions: dict[str, str]
    network: str


class Person(Part):
    """Somebody who acts through the service's keys: a person or a program, by the service's id and by name."""

    id: str
    name: str


class AuditHead(Part):
    """The end of the service's audit log when the report was signed: what is cut off the log later is missed."""

    position: int = Field(ge=1)
    hash: Sha256


class Requested(Part):
    """Who asked, who agreed, and until when, as the service's books had it when the report was signed. Times are
    RFC 3339 in UTC. `data_destroyed_by` is when the time of the forget set's key is up: it is destroyed then, if not
    before, unless what `data_destroyed_unless` says is so."""

    job: str
    reason: str
    reference: str | Absent
    submitted_by: Person
    approved_by: Person | Absent
    approved_at: str | Absent
    received_at: str
    due_at: str
    data_destroyed_by: str | Absent
    data_destroyed_unless: str | Absent
    audit_head: AuditHead | Absent


NO_SERVICE = Absent(absent="run without the service")


class EarlierRemoval(Part):
    """What an earlier job on the model's line removed, measured again on the model that is delivered: the metrics of
    its forget set `then`, after that job, and `now`. `came_back`: whether a gate of its own on that set held then and
    fails now; `reasons` are those gates'."""

    job: str
    commitment: Sha256 | Absent
    rows: int | Absent
    then: dict[str, Measurement] | Absent
    now: dict[str, Measurement] | Absent
    came_back: bool | Absent
    reasons: list[str]


class Evaluated(Part):
    """What `lethe evaluate` measured of a model, and the verdict; nothing was changed."""

    version: Literal["1"] = VERSION
    spec: dict[str, Any]
    spec_digest: Sha256 | Absent
    started_at: str
    finished_at: str
    model: Sha256 | Absent
    before_model: Sha256 | Absent
    sets: dict[str, DataUsed]
    before: dict[str, Measurement]
    after: dict[str, Measurement]
    verdict: Verdict
    environment: Environment
    limitations: list[str]


class Report(Part):
    """Everything the run can say for itself."""

    version: Literal["1"] = VERSION
    spec: dict[str, Any]
    spec_digest: Sha256
    request: Requested | Absent = NO_SERVICE
    seed: int
    started_at: str
    finished_at: str
    input_model: Sha256
    output_model: Sha256
    output_files: dict[str, Sha256]
    forget: DataUsed
    retain: DataUsed | Absent
    beside: dict[str, DataUsed]
    before: dict[str, Measurement]
    after: dict[str, Measurement]
    training: TrainingDone
    earlier: list[EarlierRemoval] | Absent = NO_SERVICE
    verdict: Verdict
    environment: Environment
    limitations: list[str]
