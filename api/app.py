"""The REST API: `python -m uvicorn api.app:create_app --factory --ws none`. Settings come from LETHE_* variables."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

import anyio
import structlog
from anyio import to_thread
from fastapi import Depends, FastAPI
from sqlalchemy.exc import SQLAlchemyError

from api import openapi, problems
from api.asked_jobs import AskedJobs
from api.deps import Service, authenticated
from api.known_keys import KnownKeys
from api.leaving import AtWork, Leaving
from api.meter import Meter
from api.middleware import Surround
from api.queue import Queue
from api.rates import Counts, rated
from api.readiness import Readiness
from api.refusals import ALL_TOGETHER, Refusals
from api.routes import (
    access,
    actions,
    aliases,
    artifacts,
    audit,
    catalogue,
    datasets,
    docs,
    events,
    health,
    jobs,
    metrics,
    models,
    prometheus,
    webhooks,
)
from api.settings import Settings
from api.store import adopted, bare, coredumps, logs
from api.store.blobs import Blobs
from api.store.errors import InvalidSetting
from api.store.session import open_database
from api.store.settings import end, load
from api.store.vault import Vault
from api.webhooks.deliverer import Deliverer
from api.webhooks.targets import Guard

log = structlog.get_logger()

OPEN = (health.router, docs.router, prometheus.router)
GUARDED = (
    jobs.router,
    actions.router,
    metrics.router,
    events.router,
    artifacts.router,
    datasets.router,
    models.router,
    aliases.router,
    catalogue.router,
    webhooks.router,
    access.router,
    audit.router,
)
# Threads of their own, so that slow uploads and large folders keep no other request waiting.
UPLOADS_AT_ONCE = 16
HASHING_AT_ONCE = 2
# A live upload writes far more often: `upload_idle` ends it otherwise.
ABANDONED_AFTER = 3600.0
FLOODS_TOLD_EVERY = 5.0
LEAVES_WITHIN = 2.0


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API as an ASGI app. Ends the process with a message where a setting is missing or wrong."""
    try:
        service = _put_together(settings or load(Settings))
    except InvalidSetting as error:
        end(error)
    logs.configure()
    coredumps.refuse()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.blobs.remove_abandoned(ABANDONED_AFTER)
        service.leaving.watch()
        telling = asyncio.create_task(_tell_of_floods(service.refusals))
        # Beside the first requests: the database may be away, or still without its tables.
        wrapping = threading.Thread(target=_take_over, args=(service,), daemon=True)
        wrapping.start()
        deliverer = Deliverer(service.database, service.vault, service.guard)
        if service.settings.webhooks_deliver:
            deliverer.start()
        yield
        # What the server has broken off cleans up after itself in a thread, and the process ends when this does.
        with anyio.move_on_after(LEAVES_WITHIN):
            while service.receiving:  # noqa: ASYNC110  (threads end without telling the loop)
                await anyio.sleep(0.02)
        await to_thread.run_sync(deliverer.close)
        wrapping.join(LEAVES_WITHIN)
        telling.cancel()
        await to_thread.run_sync(partial(service.refusals.flush, whole=True))
        await to_thread.run_sync(service.together.close)
        service.counts.close()
        service.queue.close()
        service.database.close()

    app = FastAPI(
        title="Lethe",
        summary="Make a language model forget on request, measure it, and hand back evidence anyone can check",
        version="1",
        # A redirect would be made of the Host that the caller sent.
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=openapi.ERRORS,
        # It would record values of requests.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    app.add_middleware(Surround)
    problems.install(app, service.refusals.note)
    app.mount(docs.STATIC, docs.assets())
    openapi.install(app)
    # In the order in which they are looked through for each request: those that are asked most come first.
    for router in GUARDED:
        app.include_router(router, dependencies=[Depends(authenticated)])
    for router in OPEN:
        app.include_router(router)
    return app


def _take_over(service: Service) -> None:
    """What the first version of Lethe has left, or enters still."""
    try:
        with service.database.transaction() as session:
            if rows := adopted.adopt(session):
                log.info("rows adopted", rows=rows)
        if wrapped := bare.wrap_all(service.database, service.vault):
            log.info("bare keys wrapped", keys=wrapped)
    except SQLAlchemyError as error:
        # They are read as they are, and the next start tries again.
        problems.note_database(error)


async def _tell_of_floods(refusals: Refusals) -> None:
    while True:
        await asyncio.sleep(FLOODS_TOLD_EVERY)
        await to_thread.run_sync(refusals.flush)


def _put_together(settings: Settings) -> Service:
    database = open_database(settings.database_url)
    queue = Queue(settings.broker_url, settings.broker_timeout)
    counts = Counts(settings.broker_url)
    return Service(
        settings=settings,
        database=database,
        blobs=Blobs(settings.artifacts_url),
        queue=queue,
        vault=Vault(settings.master_key.encode()),
        known_keys=KnownKeys(settings.key_secret.encode()),
        guard=Guard(settings.webhook_allow),
        meter=Meter(database, timedelta(days=settings.due_soon_days)),
        readiness=Readiness(database, queue),
        leaving=Leaving(),
        counts=counts,
        together=AskedJobs(database),
        rate=rated("calls", settings.rate_limit, counts),
        refusals=Refusals(
            database,
            settings.key_secret.encode(),
            rated("refused", settings.refusal_limit, counts),
            rated("refused-all", settings.refusal_limit, counts, times=ALL_TOGETHER),
        ),
        uploads=anyio.CapacityLimiter(UPLOADS_AT_ONCE),
        receiving=AtWork(),
        hashing=anyio.CapacityLimiter(HASHING_AT_ONCE),
    )
