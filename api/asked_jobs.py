"""What the API asks of the database most: entering jobs, and looking at single ones; of many callers together."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from api import job_schemas
from api.store import batches, entering, jobs, life, models, turn
from api.store.entering import Request
from api.store.session import Database
from api.store.tables import Job
from api.together import Together
from core.errors import LetheError


@dataclass(frozen=True)
class Wanted:
    """A job that somebody wants to look at; with `only`, if it is this principal's."""

    job_id: str
    only: str | None


@dataclass(frozen=True)
class Earlier:
    """A job that this principal may have made with this Idempotency-Key and this body."""

    principal_id: str
    idempotency_key: str
    body_digest: str


class AskedJobs:
    """Both in lines of their own: looking does not wait for a commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._entering = Together[Request, tuple[job_schemas.Job, bool]]("enter jobs", self._enter)
        self._looking = Together[Wanted | Earlier, job_schemas.Job | None]("look at jobs", self._look)

    async def enter(self, request: Request) -> tuple[job_schemas.Job, bool]:
        """The job as the API shows it, and True if it is new. Raises as `jobs.create` does."""
        return await self._entering.ask(request)

    async def see(self, wanted: Wanted) -> job_schemas.Job:
        """The job as the API shows it. Raises NotFound."""
        found = await self._looking.ask(wanted)
        assert found is not None
        return found

    async def find(self, earlier: Earlier) -> job_schemas.Job | None:
        """The job, if there is one. Raises IdempotencyMismatch."""
        return await self._looking.ask(earlier)

    def close(self) -> None:
        """End both lines, once what was asked is answered."""
        self._entering.close()
        self._looking.close()

    def _enter(self, requests: Sequence[Request]) -> list[tuple[job_schemas.Job, bool] | Exception]:
        with self._database.transaction() as session:
            entered = entering.enter(session, requests)
            made = [one for one in entered if not isinstance(one, LetheError)]
            told = iter(seen_many(session, [job for job, _ in made]))
            return [one if isinstance(one, LetheError) else (next(told), one[1]) for one in entered]

    def _look(self, asked: Sequence[Wanted | Earlier]) -> list[job_schemas.Job | Exception | None]:
        with self._database.reading() as session:
            found = jobs.among(session, {one.job_id for one in asked if isinstance(one, Wanted)})
            rows: list[Job | Exception | None] = [
                _picked(found, one) if isinstance(one, Wanted) else _earlier(session, one) for one in asked
            ]
            told = iter(seen_many(session, [row for row in rows if isinstance(row, Job)]))
            return [next(told) if isinstance(row, Job) else row for row in rows]


def seen(session: Session, job: Job) -> job_schemas.Job:
    """The job as the API shows it."""
    return seen_many(session, [job])[0]


def seen_many(session: Session, rows: Sequence[Job]) -> list[job_schemas.Job]:
    """The jobs as the API shows them."""
    positions = jobs.queue_positions(session, [job for job in rows if job.status == "queued"])
    destroyed = life.destroyed(session, rows)
    answers = []
    for job in rows:
        told = job_schemas.Job.model_validate(job, from_attributes=True)
        made = models.of_job(session, job.id) if job.status == "succeeded" else None
        more = {
            "queue_position": positions.get(job.id),
            "waits_for": turn.waits_for(session, job),
            "output_model": made.id if made else None,
            "data_destroyed": job.id in destroyed,
            "members": batches.members(session, job.id) if job.led_by == job.id else [],
        }
        answers.append(told.model_copy(update=more))
    return answers


def _picked(found: dict[str, Job], wanted: Wanted) -> Job | Exception:
    job = found.get(wanted.job_id)
    return jobs.absent_job(wanted.job_id) if job is None or wanted.only not in (None, job.principal_id) else job


def _earlier(session: Session, asked: Earlier) -> Job | Exception | None:
    try:
        return entering.earlier(session, **vars(asked))
    except LetheError as error:
        return error
