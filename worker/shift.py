"""A worker's time on duty: its slots (one running job each), and the thread that looks at SQL by itself.

A consumer can stop consuming after its broker was reset, and messages get lost; neither loses a job.
"""

import os
import queue
import random
import socket
import threading
from collections.abc import Callable
from datetime import timedelta

import structlog

from api.store import adopted, chain, outbox, sweep, turn
from api.store.blobs import DRAWERS, Blobs
from api.store.errors import InvalidSetting
from api.store.session import open_database
from api.store.vault import Vault
from core.report.heads import sign_head
from core.report.keys import EvidenceError, load_key, load_or_create_key
from worker.attempt import Bench, run_next
from worker.destruction import destroy_due, record_destroyed
from worker.engine import Spare
from worker.folder import remove_abandoned
from worker.meter import Door
from worker.orphans import remove_orphans
from worker.settings import WorkerSettings

log = structlog.get_logger()


class Shift:
    """Runs jobs, at most `slots` at a time; sweeps while it waits. `ring` sends a job's id to the queue."""

    def __init__(self, settings: WorkerSettings, *, slots: int, ring: Callable[[str], object]) -> None:
        self.settings = settings
        self.leaving = threading.Event()
        self._ring = ring
        self._database = open_database(settings.database_url)
        self._blobs = Blobs(settings.artifacts_url)
        self._key = _signing_key(settings)
        self._vault = Vault(settings.master_key.encode())
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        if settings.devices and len(settings.devices) < slots:
            raise InvalidSetting(
                f"devices gives devices to {len(settings.devices)} of {slots} jobs at once. "
                "Allowed: as many as --concurrency, or none.",
                param="devices",
            )
        devices: list[str | None] = [*settings.devices[:slots]] or [None] * slots
        self._slots = [Spare(device, settings.processes, str(settings.engine_python)) for device in devices]
        # Free slots, the one that was freed last on top: it is the likeliest to be warm.
        self._free: queue.LifoQueue[Spare] = queue.LifoQueue()
        for spare in self._slots:
            self._free.put(spare)
        self._looker = threading.Thread(target=self._look_after, name="look")
        self._runners: list[threading.Thread] = []
        self._door = Door(settings.metrics_host, settings.metrics_port) if settings.metrics_port else None

    def begin(self) -> None:
        """Warm the spares and start looking."""
        for spare in self._slots:
            spare.refill()
        self._looker.start()

    def end(self) -> None:
        """Wait for what runs to end; `leaving` has been set."""
        self.leaving.set()
        self._looker.join()
        for runner in self._runners:
            runner.join()
        for spare in self._slots:
            spare.close()
        if self._door is not None:
            self._door.close()
        self._database.close()

    def turn(self) -> None:
        """Carry out the next job when a slot is free, and then what waits still, since no message may come for a job
        that waited for that one; a worker that leaves takes none."""
        while not self.leaving.is_set():
            try:
                spare = self._free.get(timeout=0.2)
            except queue.Empty:
                continue
            try:
                while run_next(self._bench(spare)) and not self.leaving.is_set():
                    pass
            finally:
                self._free.put(spare)
            return

    def _bench(self, spare: Spare) -> Bench:
        return Bench(
            self.settings, self._database, self._blobs, spare, self.leaving, self._key, self._vault, self._name
        )

    def _look_after(self) -> None:
        while not self.leaving.is_set():
            self._look()
            self.leaving.wait(self.settings.poll_seconds)

    def _look(self) -> None:
        """All that is due. What fails, since database, broker or store is away, holds up nothing behind it."""
        duties = (
            self._remove_folders,
            self._adopt,
            self._sweep,
            self._take_waiting,
            self._tell_of_due_dates,
            self._prune_messages,
            self._destroy,
            self._record_destroyed,
            self._seal,
            self._remove_orphans,
            self._remove_parts,
        )
        for duty in duties:
            try:
                duty()
            except Exception:
                # The next look may find it back.
                log.warning("duty failed", duty=duty.__name__.strip("_"), exc_info=True)

    def _remove_folders(self) -> None:
        for name in remove_abandoned(self.settings.work_dir):
            log.info("abandoned folder removed", folder=name)

    def _adopt(self) -> None:
        with self._database.transaction() as session:
            adopted.adopt(session)

    def _sweep(self) -> None:
        """Requeue what dead workers left, and ring again for what waits."""
        with self._database.transaction() as session:
            requeued = sweep.expired(session, cap=self.settings.attempts_cap)
            rung = [*(job.id for job in requeued if job.status == "queued")]
            rung += sweep.waiting(session, older_than=self.settings.poll_seconds)
        for job in rung:
            try:
                self._ring(job)
            except Exception as error:
                log.warning("broker unreachable", error=type(error).__name__)
                break

    def _tell_of_due_dates(self) -> None:
        with self._database.transaction() as session:
            outbox.tell_of_due_dates(session, soon=timedelta(days=self.settings.due_soon_days))

    def _prune_messages(self) -> None:
        with self._database.transaction() as session:
            outbox.prune(session)

    def _destroy(self) -> None:
        destroy_due(self._database, self._blobs, self.settings.retention_days, f"worker:{self._name}")

    def _record_destroyed(self) -> None:
        record_destroyed(self._database, self._blobs, self._key)

    def _remove_orphans(self) -> None:
        # Looks come at no fixed times, and so do drawers: workers do not look into the same one together.
        remove_orphans(self._database, self._blobs, random.randrange(DRAWERS), self.settings.orphan_seconds)

    def _remove_parts(self) -> None:
        self._blobs.remove_abandoned(self.settings.orphan_seconds)

    def _seal(self) -> None:
        """Put what was noted since the last look into the audit log's chain, and sign its end."""
        with self._database.transaction() as session:
            end = chain.seal(session)
            chain.sign_head(session, end, lambda head, at: sign_head(head.position, head.hash, at, self._key))

    def _take_waiting(self) -> None:
        """Begin waiting jobs by ourselves, in threads of their own so that the sweep goes on meanwhile."""
        self._runners = [thread for thread in self._runners if thread.is_alive()]
        # Asked before a slot is taken: a database that is away must not cost the worker a slot for good.
        with self._database.reading() as session:
            if turn.first(session) is None:
                return
        # Once a slot: what waits may not be able to begin yet.
        for _ in self._slots:
            try:
                spare = self._free.get_nowait()
            except queue.Empty:
                return
            self._runners.append(threading.Thread(target=self._run_waiting, args=(spare,), name="runner"))
            self._runners[-1].start()

    def _run_waiting(self, spare: Spare) -> None:
        try:
            while not self.leaving.is_set() and run_next(self._bench(spare)):
                pass
        except Exception:
            # Whatever happened, the job's lease will run out and another attempt will follow.
            log.exception("attempt broke off")
        finally:
            self._free.put(spare)


def _signing_key(settings: WorkerSettings) -> bytes:
    """A worker does not make the key by itself: of several machines each would sign with another one."""
    if settings.embedded:
        return load_or_create_key(settings.signing_key_file)
    try:
        return load_key(settings.signing_key_file)
    except EvidenceError as error:
        how = f"openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {settings.signing_key_file}"
        said = f"LETHE_SIGNING_KEY_FILE: {error.message} `{how}` makes one."
        raise InvalidSetting(said, param="signing_key_file") from None
