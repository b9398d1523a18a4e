"""The Celery app: `python -m celery -A worker.app worker --pool=threads --concurrency=1`.

Messages are acknowledged at once: on Redis a late acknowledgement delivers a long task twice, and recovery is the
lease's work. A message carries a job's id and nothing else, and says only that something waits; SQL is the truth.
"""

from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_init, worker_ready, worker_shutdown, worker_shutting_down

from api.store import coredumps, logs
from api.store.errors import InvalidSetting
from api.store.settings import end, load
from core.errors import LetheError
from worker.settings import WorkerSettings
from worker.shift import Shift

QUEUE = "lethe"
TASK = "lethe.run"
# A worker all of whose slots are busy asks the broker for nothing, and nothing wakes its loop when one is free.
_LOOKS_EVERY = 0.05

try:
    settings = load(WorkerSettings)
except InvalidSetting as error:
    end(error)
app = Celery("lethe", broker=settings.broker_url)
app.conf.update(
    task_default_queue=QUEUE,
    task_ignore_result=True,
    task_acks_late=False,
    task_reject_on_worker_lost=False,
    task_serializer="json",
    accept_content=["json"],
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
)
_shift: list[Shift] = []
_noticing = False


@setup_logging.connect
def _log_as_json(**_: Any) -> None:
    logs.configure()


@worker_init.connect
def _begin(sender: Any = None, **_: Any) -> None:
    coredumps.refuse()
    try:
        shift = Shift(settings, slots=sender.concurrency or 1, ring=lambda job: app.send_task(TASK, (job,)))
    except LetheError as error:
        end(error)
    _shift.append(shift)
    shift.begin()


@worker_ready.connect
def _notice_free_slots(sender: Any = None, **_: Any) -> None:
    """Celery's own loop wakes once a second, and a job that comes meanwhile would wait for that."""
    global _noticing
    if sender.hub is not None and not _noticing:  # It is ready anew whenever the broker came back.
        _noticing = True
        sender.hub.call_repeatedly(_LOOKS_EVERY, lambda: None)


@worker_shutting_down.connect
def _leave(**_: Any) -> None:
    for shift in _shift:
        shift.leaving.set()


@worker_shutdown.connect
def _end(**_: Any) -> None:
    for shift in _shift:
        shift.end()


@app.task(name=TASK)
def run(_job_id: str) -> None:
    """Carry out a job: the one whose turn it is, which need not be the one that was rung for."""
    _shift[0].turn()
