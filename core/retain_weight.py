"""The weight of the retain term in the course of a run: constant, rising with the epochs, or a dual variable."""

from dataclasses import dataclass

from core.spec.retain import PrimalDual, RetainTerm


@dataclass
class RetainWeight:
    """`w_r(t)` of a run of so many steps of `batch` rows, over a set of `rows` to a pass. `dual` is its present value
    where the schedule is primal-dual: training state."""

    term: RetainTerm
    steps: int
    rows: int
    batch: int
    dual: float | None = None

    def __post_init__(self) -> None:
        if self.dual is None and isinstance(self.term.schedule, PrimalDual):
            self.dual = self.term.weight

    def at(self, step: int) -> float:
        """The weight in optimizer step `step` (from 0)."""
        if self.dual is not None:
            return self.dual
        if self.term.schedule.name == "linear":
            epoch, epochs = step * self.batch // self.rows, max(1, round(self.steps * self.batch / self.rows))
            return self.term.weight * epoch / epochs
        return self.term.weight

    def after(self, step: int, retain: float) -> None:
        """Take in a step's retain loss R, unweighted: `w_r <- max(0, w_r + eta (R - eps))`."""
        schedule = self.term.schedule
        if not isinstance(schedule, PrimalDual) or step * self.batch < schedule.warmup_epochs * self.rows:
            return
        assert self.dual is not None
        self.dual = max(0.0, self.dual + schedule.eta * (retain - schedule.eps))

    def told(self, step: int) -> float | None:
        """What an event says of it: nothing where it never changes."""
        return None if self.term.schedule.name == "constant" else self.at(step)
