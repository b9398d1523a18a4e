"""What finished runs have cost, and what a request may cost in their light: nothing that was not measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.store.records import Run
from api.store.session import now

NEWEST = 20
FAR = 10  # a model so many times larger or smaller says nothing about this one
_LOOKED_AT = 500


@dataclass(frozen=True)
class Cost:
    """What one attempt that was not interrupted has cost. Seconds are wall-clock, `seconds` those of all of it."""

    device: str
    method: str
    optimizer: str
    parameters: int
    rows_trained: int
    train_seconds: float
    rows_scored: int
    score_seconds: float
    seconds: float
    memory_bytes: int  # the most that the engine held
    idle_bytes: int  # what of that it held before it read the model


@dataclass(frozen=True)
class Estimate:
    """What a request may cost on the device where the newest runs were. `runs` is on how many of them it stands."""

    device: str
    train_seconds: float
    score_seconds: float
    seconds: float
    memory_bytes: int
    runs: int


def note(session: Session, job_id: str, cost: Cost) -> None:
    """Keep what a job's run has cost, in the transaction in which it succeeds."""
    session.add(Run(job_id=job_id, at=now(session), **vars(cost)))


def estimate(
    session: Session, *, method: str, optimizer: str, parameters: int | None, rows_trained: int, rows_scored: int
) -> Estimate | str:
    """Medians over the newest runs of the method, else of any, scaled by weights and records; or why there is none.

    Of runs on models of just this size only those count. The rest of the time (loading, attacks, writing) is scaled by
    weights, memory by weights beyond what an engine holds before it reads any.
    """
    if parameters is None:
        return "How many weights the model has is not known: it was registered before they were counted."
    newest = _newest(session, parameters, method) or _newest(session, parameters)
    if not newest:
        return f"No run was measured yet of a model within {FAR} times of the size of this one."
    runs = [run for run in newest if run.parameters == parameters] or newest
    same = [run for run in runs if run.optimizer == optimizer] or runs
    train = _scaled(runs, lambda run: (run.train_seconds, run.rows_trained)) * parameters * rows_trained
    score = _scaled(runs, lambda run: (run.score_seconds, run.rows_scored)) * parameters * rows_scored
    rest = median(max(0.0, r.seconds - r.train_seconds - r.score_seconds) / r.parameters for r in runs) * parameters
    grown = median((run.memory_bytes - run.idle_bytes) / run.parameters for run in same) * parameters
    return Estimate(
        device=runs[0].device,
        train_seconds=round(train, 1),
        score_seconds=round(score, 1),
        seconds=round(train + score + rest, 1),
        memory_bytes=round(median(run.idle_bytes for run in same) + grown),
        runs=len(runs),
    )


def _newest(session: Session, parameters: int, method: str | None = None) -> list[Run]:
    """The newest runs on models of about this size, all on the device of the newest of them."""
    query = select(Run).order_by(Run.at.desc()).limit(_LOOKED_AT)
    found = session.scalars(query if method is None else query.where(Run.method == method))
    near = [run for run in found if parameters / FAR <= run.parameters <= parameters * FAR]
    return [run for run in near if run.device == near[0].device][:NEWEST]


def _scaled(runs: Sequence[Run], of: Callable[[Run], tuple[float, int]]) -> float:
    """The median of seconds for one record and one weight; 0 where no run had records of the kind."""
    told = [(*of(run), run.parameters) for run in runs]
    return median([seconds / (rows * parameters) for seconds, rows, parameters in told if rows] or [0.0])
