"""For whoever runs the process: does it answer, does it have what it needs. Open to everyone, so it tells little."""

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from api import schemas
from api.deps import Parts
from api.problems import problem

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthy() -> schemas.Health:
    """The process answers."""
    return schemas.Health()


@router.get("/readyz", response_model=schemas.Ready, responses={503: {"description": "Something is missing"}})
async def ready(request: Request, service: Parts) -> schemas.Ready | JSONResponse:
    """Database, migrations and broker are there. Without a broker jobs are still taken, but begin late."""
    missing = service.readiness.at_hand()
    if missing is None:
        missing = await run_in_threadpool(service.readiness.look)
    faults = [{"param": name, "message": message} for name, message in missing.items() if message]
    if faults:
        detail = " ".join(fault["message"] for fault in faults)
        return problem(request, 503, "not_ready", detail, param=faults[0]["param"], errors=faults)
    ok: Literal["ok"] = "ok"
    return schemas.Ready(checks=dict.fromkeys(missing, ok))
