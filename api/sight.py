"""Whose jobs and data sets a caller may see, and whose they may act on.

What is not seen is answered as if it were not there; what is seen and may not be done is refused.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from api.deps import caller_of
from api.errors import Forbidden
from api.store import jobs, keys
from api.store.tables import ApiKey, Job


@dataclass(frozen=True)
class Sight:
    """What one key sees."""

    key: ApiKey

    @property
    def only(self) -> str | None:
        """The principal whose jobs and data sets alone are seen; None: everybody's."""
        return None if keys.sees_all(self.key) else self.key.principal_id

    def job(self, session: Session, job_id: str) -> Job:
        """A job that is seen. Raises NotFound."""
        return jobs.get(session, job_id, only=self.only)


async def sight_of(request: Request) -> Sight:
    """The caller's sight."""
    return Sight(await caller_of(request))


Seen = Annotated[Sight, Depends(sight_of)]


def its_owner(session: Session, caller: ApiKey, job_id: str) -> None:
    """Raises NotFound where the caller does not see the job, and Forbidden where it is another principal's."""
    job = Sight(caller).job(session, job_id)
    if job.principal_id != caller.principal_id and not keys.may(caller, "admin"):
        raise Forbidden(
            f"Job {job_id} is another principal's; this call needs the scope admin there.", param="Authorization"
        )
