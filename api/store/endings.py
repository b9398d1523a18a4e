"""How an attempt without an answer ends for every job that shares it. Each function raises LeaseLost.

The fault of one shall not be the others' loss: where it is known whose it is, only that job bears it; where it is not,
each goes on by itself, and fails by itself or not at all.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from api.store import attempts
from api.store.claims import Claim
from api.store.life import DEFAULT_CAP
from api.store.tables import Job


def release(session: Session, claim: Claim, *, reason: str, counts: bool, cap: int = DEFAULT_CAP) -> None:
    """Nobody's fault in particular; see `attempts.release`."""
    for each in claim.everyone:
        attempts.release(session, each, reason=reason, counts=counts, cap=cap)


def cancelled(session: Session, claim: Claim) -> None:
    """The engine has stopped since the end of one of them was asked for; the others wait again."""
    for each in claim.everyone:
        if not claim.others or session.get_one(Job, each.job_id, populate_existing=True).cancel_requested:
            attempts.cancelled(session, each)
        else:
            attempts.release(session, each, reason="a request of the same run was cancelled", counts=False)


def fail(session: Session, claim: Claim, error: Mapping[str, Any], of: str | None = None) -> None:
    """The run cannot succeed, for a fault in the data of the job `of`, where it is known whose; see `attempts.fail`."""
    known = any(each.job_id == of for each in claim.everyone)
    for each in claim.everyone:
        if not claim.others or each.job_id == of:
            attempts.fail(session, each, error)
        elif known:
            attempts.release(session, each, reason="a request of the same run failed", counts=False)
        else:
            attempts.release(session, each, reason=f"the shared run failed: {error['code']}", counts=False, apart=True)
