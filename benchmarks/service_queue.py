"""From the queue to the end, with an engine that computes nothing: how soon a job begins, how many end in a second."""

import time
from typing import Any

import psycopg

from benchmarks.clients import at
from benchmarks.service_stack import Lethe, Servers

_PATIENCE = 600.0
_PAUSE = 0.1


def start(on: Servers, jobs: int) -> dict[str, Any]:
    """Seconds from sending `POST /jobs` to running, each job alone with a worker that has nothing else to do."""
    lethe = Lethe(on, "start")
    waited = []
    with lethe.api(1) as port, lethe.workers(1), lethe.client(port) as client, psycopg.connect(lethe.url) as database:
        for number in range(jobs + 1):
            sent = time.time()
            answer = client.post("/jobs", json=lethe.spec)
            answer.raise_for_status()
            _ended(database, 1, answer.json()["id"])
            (began,) = _one(database, "SELECT started_at FROM jobs WHERE id = %s", answer.json()["id"])
            if number:  # the first one meets cold caches everywhere
                waited.append(began.timestamp() - sent)
            time.sleep(_PAUSE)
    return {
        "jobs": jobs,
        **{name: round(at(share, waited), 4) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))},
    }


def drain(on: Servers, jobs: int, workers: int) -> dict[str, Any]:
    """Jobs a second, from when every worker has begun to the last job's end. RuntimeError where one did not succeed at
    its first attempt."""
    lethe = Lethe(on, f"drain_{workers}")
    with lethe.api(1) as port, psycopg.connect(lethe.url) as database:
        with lethe.client(port) as client:
            for _ in range(jobs):
                client.post("/jobs", json=lethe.spec).raise_for_status()
        with lethe.workers(workers):
            _ended(database, jobs)
        (succeeded,) = _one(database, "SELECT count(*) FROM jobs WHERE status = 'succeeded'")
        (attempts,) = _one(database, "SELECT count(*) FROM attempts")
        if (succeeded, attempts) != (jobs, jobs):
            raise RuntimeError(f"of {jobs} jobs {succeeded} succeeded, in {attempts} attempts")
        (all_began,) = _one(database, "SELECT max(b) FROM (SELECT min(started_at) b FROM attempts GROUP BY worker) w")
        ended, seconds, busy = _one(
            database,
            "SELECT count(*), extract(epoch FROM max(ended_at) - %s)::float, count(DISTINCT worker) "
            "FROM attempts WHERE ended_at > %s",
            all_began,
            all_began,
        )
    return {"workers": workers, "worked": busy, "jobs": jobs, "succeeded": succeeded, "a_second": ended / seconds}


def _ended(database: psycopg.Connection[Any], count: int, job: str = "%") -> None:
    """Wait until so many of these jobs have ended."""
    deadline = time.monotonic() + _PATIENCE
    terminal = "status IN ('succeeded', 'failed', 'cancelled')"
    while _one(database, f"SELECT count(*) FROM jobs WHERE id LIKE %s AND {terminal}", job)[0] < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{count} jobs had not ended within {_PATIENCE:.0f} s")
        time.sleep(0.02 if count == 1 else 0.5)


def _one(database: psycopg.Connection[Any], query: str, *values: Any) -> tuple[Any, ...]:
    row = database.execute(query, values).fetchone()
    database.commit()
    assert row is not None
    return row
