"""The audit log: who did what to what, and whether it is still what was written."""

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query
from pydantic import Field

from api import access_schemas as schemas
from api.deps import MOST, Auditor, Parts, Service
from api.store import audit, chain
from api.store.chain_check import verify
from core.spec.base import Spec

router = APIRouter(prefix="/audit", tags=["audit log"])


class AuditQuery(Spec):
    """Which entries, and from where on."""

    subject: str | None = Field(None, max_length=200, description="the id of what something was done to")
    actor: str | None = Field(None, max_length=200)
    action: str | None = Field(None, max_length=200, description="such as job.approved or access.refused")
    after: int | None = Field(None, ge=1, le=MOST, description="`after` of the page before; absent: from the newest on")
    limit: int = Field(50, ge=1, le=200)


@router.get("")
def listing(service: Parts, caller: Auditor, query: Annotated[AuditQuery, Query()]) -> schemas.AuditEntries:  # noqa: ARG001
    """Entries, the newest first."""
    with service.database.reading() as session:
        rows, more = audit.page(session, **query.model_dump())
    data = [schemas.AuditEntry.model_validate(row) for row in rows]
    return schemas.AuditEntries(data=data, has_more=more, after=data[-1].id if data else None)


@router.get("/verify")
async def verified(service: Parts, caller: Auditor) -> schemas.AuditVerification:  # noqa: ARG001
    """Recompute the chain. The whole log is read, which takes some twenty seconds a million entries."""
    return await to_thread.run_sync(partial(_verified, service), limiter=service.hashing)


def _verified(service: Service) -> schemas.AuditVerification:
    with service.database.snapshot() as session:
        newest = chain.newest_head(session)
        found = verify(session)
    return schemas.AuditVerification.model_validate(
        {**vars(found), "ok": found.ok, "head": vars(found.head), "newest_head": newest}, from_attributes=True
    )
