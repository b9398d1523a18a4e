"""What reading takes with a million jobs in the table and with a thousand: pages and single jobs, in turns."""

import statistics
from contextlib import ExitStack
from typing import Any

import psycopg

from benchmarks.clients import at, beside
from benchmarks.service_stack import Lethe, Servers

# A tenth waits; every case number comes five times; what has ended did so in the order in which it came.
_COLUMNS = {
    "id": "'job_00' || lpad(to_hex(n), 24, '0')",
    "status": "(ARRAY['queued','failed','cancelled','succeeded','succeeded',"
    "'succeeded','succeeded','succeeded','succeeded','succeeded'])[1 + n % 10]",
    "rank": "CASE WHEN n % 50 = 0 THEN 0 WHEN n % 20 = 0 THEN 2 ELSE 1 END",
    "reference": "'case ' || n % (({count} + 4) / 5)",
    "idempotency_key": "NULL",
    "attempt": "CASE WHEN n % 10 = 0 THEN 0 ELSE 1 END",
    "verdict": "CASE WHEN n % 10 > 2 THEN 'passed' END",
    "started_at": "CASE WHEN n % 10 > 0 THEN t.created_at + n * interval '1 second' END",
    "finished_at": "CASE WHEN n % 10 > 0 THEN t.created_at + (n + 60) * interval '1 second' END",
    **{each: f"t.{each} + n * interval '1 second'" for each in ("created_at", "queued_at", "rung_at", "due_at")},
}


def measure(on: Servers, sizes: tuple[int, int], seconds: float, rounds: int) -> dict[str, Any]:
    """Median of one client's p50, in milliseconds, for each read and size, and the larger's over the smaller's."""
    with ExitStack() as stack:
        drive = stack.enter_context(beside())
        made = [(size, Lethe(on, f"jobs_{size}")) for size in sizes]
        ports = [stack.enter_context(lethe.api(1)) for _, lethe in made]
        for (size, lethe), port in zip(made, ports, strict=True):
            fill(lethe, port, size)
        taken: dict[str, dict[int, list[float]]] = {}
        for _ in range(rounds):
            for (size, lethe), port in zip(made, ports, strict=True):
                for name, path in _reads(size).items():
                    seen = drive(port, lethe.fetch([path]), 1, seconds, 0)
                    taken.setdefault(name, {}).setdefault(size, []).append(at(0.5, seen.durations) * 1000)
    result = {name: {size: statistics.median(values) for size, values in row.items()} for name, row in taken.items()}
    small, large = sizes
    return {
        name: {"few": round(row[small], 3), "many": round(row[large], 3), "ratio": round(row[large] / row[small], 2)}
        for name, row in result.items()
    }


def fill(lethe: Lethe, port: int, count: int) -> None:
    """Put so many jobs into the table, each like one that was really submitted."""
    with lethe.client(port) as client:
        client.post("/jobs", json=lethe.spec).raise_for_status()
    with psycopg.connect(lethe.url, autocommit=True) as connection:
        names = _names(connection, "jobs")
        values = ", ".join(_COLUMNS.get(name, f"t.{name}").format(count=count) for name in names)
        # Foreign keys hold, since a job that is there is copied; looking at each would take minutes.
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            f"INSERT INTO jobs ({', '.join(names)}) SELECT {values} "
            f"FROM (SELECT * FROM jobs LIMIT 1) t, generate_series(1, {count} - 1) n"
        )
        connection.execute(
            "INSERT INTO job_datasets (job_id, role, dataset_id) SELECT j.id, d.role, d.dataset_id "
            "FROM jobs j, job_datasets d WHERE j.id LIKE 'job\\_00%'"
        )
        connection.execute("VACUUM ANALYZE")


def _reads(size: int) -> dict[str, str]:
    """Each kind of read; job numbers are those of `_COLUMNS`."""

    def job(number: int) -> str:
        return f"job_00{number:024x}"

    middle, third = size // 2 // 10 * 10, size // 3 // 10 * 10
    return {
        "first page": "/jobs",
        "a page deep in": f"/jobs?after={job(middle)}",
        "page of a status": "/jobs?status=failed",
        "page of those that wait": "/jobs?status=queued",
        "page of a status, deep in": f"/jobs?status=queued&after={job(middle)}",
        "page of a reference": "/jobs?reference=case%207",
        "a job that has ended": f"/jobs/{job(third + 3)}",
        "a job that waits": f"/jobs/{job(third)}",
        "the job that is next": f"/jobs/{job(50)}",
    }


def _names(connection: psycopg.Connection[Any], table: str) -> list[str]:
    found = connection.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position", (table,)
    )
    return [name for (name,) in found]
