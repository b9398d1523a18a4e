"""Whether what earlier jobs removed has stayed away: their own gates on what is measured of it now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.report.schema import Absent, EarlierRemoval, Measurement, Verdict
from core.report.verdict import apply
from core.spec.gates import Gate


@dataclass(frozen=True)
class Lasting:
    """What was found of earlier jobs on the model's line, the newest first; `of`: how many jobs there are in all."""

    removals: Sequence[EarlierRemoval] = field(default_factory=list)
    of: int = 0

    @property
    def limitations(self) -> list[str]:
        """What it does not show, in plain words."""
        said = []
        if self.of > len(self.removals):
            said.append(
                f"Of {self.of} earlier jobs on this model's line only the newest {len(self.removals)} are told of."
            )
        if unknown := sum(isinstance(removal.came_back, Absent) for removal in self.removals):
            said.append(
                f"Of {unknown} earlier jobs on this model's line nothing says whether what they removed came back."
            )
        return said

    def applied(self, verdict: Verdict) -> Verdict:
        """The verdict; not `passed` where something came back, each with a reason that names the job."""
        back = [removal for removal in self.removals if removal.came_back is True]
        if not back:
            return verdict
        told = [f"What {one.job} removed has come back: {reason}" for one in back for reason in one.reasons]
        failed = verdict.reasons if verdict.verdict == "not_passed" else []
        return verdict.model_copy(update={"verdict": "not_passed", "reasons": [*failed, *told]})


def came_back(
    gates: Sequence[Gate],
    before: Mapping[str, Measurement],
    then: Mapping[str, Measurement],
    now: Mapping[str, Measurement],
) -> tuple[bool | Absent, list[str]]:
    """Whether one of the earlier job's gates on its forget set held `then` and fails `now`, and why.

    `before` and `then` are what its report has before and after; a ratio to before is one to what the model knew before
    that job.
    """
    of_the_set = [gate for gate in gates if gate.metric.startswith("forget.")]
    held = [gate for gate in of_the_set if apply(gate, before, then).outcome == "held"]
    if not held:
        return Absent(absent="no gate on its forget set held then"), []
    results = [apply(gate, before, {**then, **now}) for gate in held]
    if failed := [result.reason for result in results if result.outcome == "failed"]:
        return True, failed
    if unsettled := [result.reason for result in results if result.outcome == "unmeasured"]:
        return Absent(absent=unsettled[0]), []
    return False, []
