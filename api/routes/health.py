"""For whoever runs the process: does it answer, does it have what it needs. Open to everyone, so it tells little."""

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError

from api import schemas
from api.deps import Parts
from api.errors import NOT_MIGRATED, note_database, problem
from api.store import migrate
from api.store.session import Database, now

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthy() -> schemas.Health:
    """The process answers."""
    return schemas.Health()


@router.get("/readyz", response_model=schemas.Ready, responses={503: {"description": "Something is missing"}})
def ready(request: Request, service: Parts) -> schemas.Ready | JSONResponse:
    """Database, migrations and broker are there. Without a broker jobs are still taken, but begin late."""
    reached = _reached(service.database)
    missing = {
        "database": None if reached else "The database cannot be reached.",
        "migrations": None if reached and migrate.at_head(service.database) else NOT_MIGRATED,
        "broker": None if service.queue.reachable() else "The broker cannot be reached.",
    }
    faults = [{"param": name, "message": message} for name, message in missing.items() if message]
    if faults:
        detail = " ".join(fault["message"] for fault in faults)
        return problem(request, 503, "not_ready", detail, param=faults[0]["param"], errors=faults)
    ok: Literal["ok"] = "ok"
    return schemas.Ready(checks=dict.fromkeys(missing, ok))


def _reached(database: Database) -> bool:
    try:
        with database.reading() as session:
            now(session)
    except SQLAlchemyError as error:
        note_database(error)
        return False
    return True
