"""How long a requester waits for a sign of life: `python -m benchmarks.first_event [--jobs N] [--out FILE]`.

From sending `POST /jobs` to the engine's first event (spec accepted), with a warm spare waiting, in the embedded
service; and from there to the first optimizer step. Floor: one HTTP request, two commits, a message, a line on a
pipe.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from api.client import Client
from api.embedded import service

ROOT = Path(__file__).resolve().parents[1]
# Longer than importing torch and transformers takes here, so that the spare is warm when the next request comes.
PAUSE = 12.0


def main() -> None:
    """Measure, print, write the result file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_event", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "first_event.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lethe-first-") as home:
        result = measure(Path(home), options.jobs)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name in ("to_first_event", "to_first_step"):
        print(name, {k: v for k, v in result[name].items() if k != "all"})


def measure(home: Path, jobs: int) -> dict[str, Any]:
    """The result document; seconds."""
    people = ROOT / "examples" / "people.jsonl"
    model = home / "models" / "small"
    command = [sys.executable, "-m", "core.scratch", str(people), "--out", str(model), "--epochs", "1"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = [json.loads(line) for line in people.read_text(encoding="utf-8").splitlines()]
    first_events, first_steps = [], []
    with service(home, key_name="benchmark") as running:
        running.wait_ready()
        assert running.new_key is not None
        with Client(running.url, running.new_key, running.tend) as client:
            data = {
                name: {"source": "upload", "dataset": client.upload(part)}
                for name, part in (("forget", rows[:20]), ("retain", rows[20:40]))
            }
            registered = client.register(model)
            spec = {"model": registered, "data": data, "method": "NPO", "training": {"steps": 3}}
            for _ in range(jobs):
                time.sleep(PAUSE)
                posted = time.time()
                job = client.submit(spec)
                accepted: list[float] = []

                def told(kind: str, event: Any, accepted: list[float] = accepted) -> None:
                    if kind == "accepted":
                        accepted.append(event["at"])

                client.follow(job, told)
                first_events.append(accepted[0] - posted)
                report = json.loads((client.download(job, home / "runs" / job) / "report.json").read_text())
                first_steps.append(report["training"]["seconds_to_first_step"])
    return {
        "what": "seconds from sending POST /jobs to the engine's first event, and from there to its first step",
        "jobs": jobs,
        "to_first_event": _summary(first_events),
        "to_first_step": _summary(first_steps),
        "machine": {"platform": platform.platform(), "processors": os.cpu_count(), "python": platform.python_version()},
    }


def _summary(seconds: list[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(seconds), 3),
        "max": round(max(seconds), 3),
        "all": [round(s, 3) for s in seconds],
    }


if __name__ == "__main__":
    main()
