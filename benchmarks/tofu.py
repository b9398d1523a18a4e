"""TOFU's forget01 forgotten through `POST /jobs`: `python -m benchmarks.tofu --data FOLDER [--out FILE]`.

A small Llama is trained from nothing until it recites forget01 (40 rows) and the first 360 rows of retain99; then the
embedded service forgets the 40, once with each optimizer. The result says whether forget probability fell from above
0.9 to below 0.1 while retain probability stayed above 0.9 of what it was.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from api.client import Client
from api.embedded import service

ROOT = Path(__file__).resolve().parents[1]
RETAINED = 360
SIZE = {"hidden": 192, "layers": 4, "heads": 4, "vocab": 2000, "batch": 16, "epochs": 40}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sophia_g": {"name": "sophia_g", "lr": 2e-4, "gamma": 1.0, "every": 5},
    "adamw": {"name": "adamw", "lr": 3e-4},
}
GATES = [
    {"metric": "forget.probability", "at_most": 0.1},
    {"metric": "retain.probability", "at_least": 0.9, "relative_to": "before"},
]


def main() -> None:
    """Run it, print the table, write the result file; exit 1 where a condition does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tofu", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with TOFU's published files")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "tofu.json")
    parser.add_argument("--home", type=Path, help="keep the service and the trained model here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lethe-tofu-") as temporary:
        result = measure(options.data, options.home or Path(temporary))
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, run in result["runs"].items():
        forget, retain = (
            f"{run['before'][m]:.3f} -> {run['after'][m]:.3f}" for m in ("forget.probability", "retain.probability")
        )
        print(f"{name:<10} forget {forget}   retain {retain}   {run['verdict']}   {run['seconds']} s")
    sys.exit(0 if all(run["holds"] for run in result["runs"].values()) else 1)


def measure(data: Path, home: Path) -> dict[str, Any]:
    """The result document."""
    sets = {
        "forget": _rows(data / "forget01_perturbed.json"),
        "retain": _rows(data / "retain99.json")[:RETAINED],
    }
    began = time.monotonic()
    model = home.resolve() / "models" / "tofu"
    if not (model / "config.json").exists():
        _train([*sets["forget"], *sets["retain"]], model)
    trained = time.monotonic() - began
    runs = {}
    with service(home, key_name="benchmark") as running:
        running.wait_ready()
        assert running.new_key is not None
        with Client(running.url, running.new_key, running.tend) as client:
            uploads = {name: {"source": "upload", "dataset": client.upload(rows)} for name, rows in sets.items()}
            registered = client.register(model)
            for name, optimizer in OPTIMIZERS.items():
                spec = {
                    "model": registered,
                    "data": uploads,
                    "method": "NPO",
                    "optimizer": optimizer,
                    "training": {"steps": 60, "batch_size": 8},
                    "gates": GATES,
                }
                runs[name] = _run(client, spec, home / "runs")
    return {
        "what": "TOFU forget01 through POST /jobs, NPO with retain nll",
        "rows": {name: len(rows) for name, rows in sets.items()},
        "model": {"architecture": "LlamaForCausalLM", **SIZE, "training_seconds": round(trained, 1)},
        "machine": {"platform": platform.platform(), "processors": os.cpu_count(), "python": platform.python_version()},
        "runs": runs,
    }


def _run(client: Client, spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    posted = time.monotonic()
    job = client.submit(spec)
    client.follow(job, lambda *_: None)
    seconds = time.monotonic() - posted
    report = json.loads((client.download(job, folder / job) / "report.json").read_text())
    before, after = (
        {name: m["value"] for name, m in report[when].items() if "value" in m} for when in ("before", "after")
    )
    forget, retain = "forget.probability", "retain.probability"
    return {
        "spec": {name: spec[name] for name in ("method", "optimizer", "training", "gates")},
        "before": before,
        "after": after,
        "verdict": report["verdict"]["verdict"],
        "holds": before[forget] > 0.9 and after[forget] < 0.1 and after[retain] > 0.9 * before[retain],
        "clip_fraction": report["training"]["clip_fraction"],
        "training_seconds": report["training"]["seconds"],
        "seconds": round(seconds, 1),
        "versions": report["environment"]["versions"],
        "threads": report["environment"]["threads"],
    }


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _train(rows: list[dict[str, Any]], folder: Path) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        # The wordings used to test for leaks must not teach the tokenizer more than the questions and answers do.
        file.writelines(json.dumps({k: row[k] for k in ("question", "answer")}) + "\n" for row in rows)
        file.flush()
        command = [sys.executable, "-m", "core.scratch", file.name, "--out", str(folder)]
        command += [part for name, value in SIZE.items() for part in (f"--{name}", str(value))]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
