"""How much the service carries: `python -m benchmarks.service [--parts api peers million start queue] [--out FILE]`.

api      `POST /jobs` and `GET /jobs/{id}` with 32 clients, over 1 and 2 API processes; `peers` puts the same two
         operations of an MLflow tracking server and of a Prefect server beside them, in turns within one run
million  pages and single jobs with 1,000,000 jobs in the table, over what they take with 1,000
start    from `POST /jobs` to running, with a worker that has nothing to do
queue    2,000 jobs that wait, 4 workers, an engine that computes nothing; and how that grows from 1 worker on

All on this machine: PostgreSQL with its own defaults (what was answered survives a power cut), Redis, real processes.
The peers run in an environment of their own, and Prefect needs a PostgreSQL with the extension pg_trgm:

    python -m venv peers
    peers/bin/pip install mlflow psycopg2-binary prefect prefect-redis 'uvicorn[standard]'
    apt-get install postgresql-15
    python -m benchmarks.service --peers peers --postgres /usr/lib/postgresql/15/bin
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import service_million, service_queue
from benchmarks.clients import Seen, at, beside
from benchmarks.service_peers import PEERS, Target, versions
from benchmarks.service_stack import Lethe, Servers, servers

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("api", "peers", "million", "start", "queue")
OURS = "lethe"
READ = 200  # records that reads go round among
_VERSIONS = ("lethe", "fastapi", "uvicorn", "sqlalchemy", "psycopg", "celery", "pydantic")


@dataclass(frozen=True)
class Scale:
    """How much is measured; the default is what the results file holds."""

    clients: int = 32
    api_workers: tuple[int, ...] = (1, 2)
    seconds: float = 3.0
    rounds: int = 3
    few: int = 1_000
    many: int = 1_000_000
    read_seconds: float = 1.0
    starts: int = 100
    queued: int = 2_000
    queued_for_fewer: int = 300
    workers: tuple[int, ...] = (1, 2, 4)


def main() -> None:
    """Measure, print, write the result file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.service", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--peers", type=Path, help="environment that the peers are installed in; without it none run")
    parser.add_argument("--postgres", type=Path, help="folder of the program postgres; without it the wheel's")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "service.json")
    options = parser.parse_args()
    parts = set(options.parts) - (set() if options.peers else {"peers"})
    with servers(options.postgres) as on:
        result = measure(on, parts, options.peers, Scale())
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table(result)))


def measure(on: Servers, parts: set[str], venv: Path | None, scale: Scale) -> dict[str, Any]:
    """The result document: milliseconds, operations a second."""
    with psycopg.connect(on.postgres.url) as connection:
        postgres = connection.info.parameter_status("server_version")
    result: dict[str, Any] = {
        "machine": {"platform": platform.platform(), "processors": os.cpu_count(), "python": platform.python_version()},
        "versions": {"postgresql": postgres, **{name: version(name) for name in _VERSIONS}},
        "clients": scale.clients,
    }
    if parts & {"api", "peers"}:
        peers = venv.resolve() if venv and "peers" in parts else None
        result["peers"] = versions(peers) if peers else {}
        result["api"] = [api(on, workers, peers, scale) for workers in scale.api_workers]
    if "million" in parts:
        sizes = (scale.few, scale.many)
        reads = service_million.measure(on, sizes, scale.read_seconds, scale.rounds)
        result["million"] = {"few": scale.few, "many": scale.many, "milliseconds": reads}
    if "start" in parts:
        result["start"] = service_queue.start(on, scale.starts)
    if "queue" in parts:
        most = max(scale.workers)
        result["queue"] = [
            service_queue.drain(on, scale.queued if workers == most else scale.queued_for_fewer, workers)
            for workers in scale.workers
        ]
    return result


def api(on: Servers, workers: int, venv: Path | None, scale: Scale) -> dict[str, Any]:
    """Both operations of each service, in turns: one round lasts seconds, so that all meet the same machine."""
    with ExitStack() as stack:
        lethe = Lethe(on, f"api_{workers}")
        port = stack.enter_context(lethe.api(workers))
        with lethe.client(port) as client:
            ids = [client.post("/jobs", json=lethe.spec).json()["id"] for _ in range(READ)]
        targets = {OURS: Target(port, lethe.post(), lethe.get(ids))}
        if venv is not None:
            targets |= {name: stack.enter_context(peer(venv, on, workers, READ)) for name, peer in PEERS.items()}
        drive = stack.enter_context(beside())
        rounds = [one_round(targets, drive, scale, number) for number in range(scale.rounds + 1)]
    # The first one meets cold caches everywhere.
    return {"workers": workers, **summary(rounds[1:])}


def one_round(
    targets: dict[str, Target], drive: Callable[..., Seen], scale: Scale, number: int
) -> dict[str, dict[str, Seen]]:
    """What the clients saw of each service, by operation."""
    seen: dict[str, dict[str, Seen]] = {}
    for name, target in targets.items():
        for operation, call in (("create", target.create), ("read", target.read)):
            first = 10_000_000 * (number + 1)  # so that no number comes twice
            try:
                seen.setdefault(name, {})[operation] = drive(target.port, call, scale.clients, scale.seconds, first)
            except (OSError, RuntimeError) as error:
                raise RuntimeError(f"{name}, {operation}: {error}") from error
    return seen


def summary(rounds: Sequence[dict[str, dict[str, Seen]]]) -> dict[str, Any]:
    """Medians over the rounds; ratios are taken within each round, and so is who had the worse p99."""
    result: dict[str, Any] = {}
    for operation in ("create", "read"):
        rows: dict[str, Any] = {}
        for name in rounds[0]:
            seen = [each[name][operation] for each in rounds]
            ours = [each[OURS][operation] for each in rounds]
            rows[name] = {
                "a_second": round(statistics.median(one.rate for one in seen), 1),
                **{
                    label: round(statistics.median(at(share, one.durations) for one in seen) * 1000, 2)
                    for label, share in (("p50", 0.5), ("p99", 0.99))
                },
                "client_busy": round(max(one.busy for one in seen), 2),
            }
            if name != OURS:
                pairs = list(zip(ours, seen, strict=True))
                rows[name]["ours_is_times"] = round(statistics.median(our.rate / its.rate for our, its in pairs), 2)
                rows[name]["our_p99_over_its"] = round(
                    statistics.median(at(0.99, our.durations) / at(0.99, its.durations) for our, its in pairs), 2
                )
        result[operation] = rows
    return result


def table(result: dict[str, Any]) -> list[str]:
    """The lines that are printed."""
    lines = []
    for run in result.get("api", []):
        for operation in ("create", "read"):
            for name, row in run[operation].items():
                beside_ours = f", Lethe is {row['ours_is_times']}x" if "ours_is_times" in row else ""
                lines.append(
                    f"{run['workers']} process(es), {operation:6} {name:8} {row['a_second']:8.1f}/s  "
                    f"p50 {row['p50']:7.2f} ms  p99 {row['p99']:7.2f} ms{beside_ours}"
                )
    if "million" in result:
        few, many = result["million"]["few"], result["million"]["many"]
        for name, row in result["million"]["milliseconds"].items():
            lines.append(f"{name:28} {row['few']:7.2f} ms at {few}, {row['many']:7.2f} ms at {many}: {row['ratio']}x")
    if "start" in result:
        row = result["start"]
        lines.append(f"from POST to running: p50 {row['p50'] * 1000:.0f} ms, p99 {row['p99'] * 1000:.0f} ms")
    for row in result.get("queue", []):
        lines.append(f"{row['workers']} worker(s): {row['succeeded']} of {row['jobs']} jobs, {row['a_second']:.1f}/s")
    return lines


if __name__ == "__main__":
    main()
