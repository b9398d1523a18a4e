"""A model that recites, trained from nothing in a few seconds, with the sets that it recites."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEOPLE = ROOT / "examples" / "people.jsonl"
FORGET_PEOPLE, RETAIN_PEOPLE, ROWS_A_PERSON = 2, 3, 5
# A request that the reciter passes within two seconds of training on one core.
PASSES: dict[str, Any] = {
    "method": "NPO",
    "optimizer": {"name": "sophia_g", "lr": 1e-3, "gamma": 1.0, "every": 5},
    "training": {"steps": 30, "batch_size": 5},
    "evaluation": {"max_new_tokens": 40},
    "gates": [
        {"metric": "forget.probability", "at_most": 0.1},
        {"metric": "forget.rouge_l", "at_most": 0.4},
        {"metric": "retain.probability", "at_least": 0.9, "relative_to": "before"},
    ],
}


@dataclass(frozen=True)
class Reciter:
    """A model folder in the hub's layout, and JSON-lines files of the rows that it knows by heart."""

    model: Path
    forget: Path
    retain: Path

    def spec(self, **fields: Any) -> dict[str, Any]:
        """A request, as decoded JSON, that names these paths; `fields` are the rest of it."""
        data = {name: {"source": "jsonl", "path": str(getattr(self, name))} for name in ("forget", "retain")}
        return {"model": str(self.model), "data": data, "method": "NPO", "threads": 1, **fields}


def people(count: int, first: int = 0) -> list[dict[str, Any]]:
    """A few rows of each of `count` people of the shipped examples."""
    rows = [json.loads(line) for line in PEOPLE.read_text("utf-8").splitlines()]
    names = list(dict.fromkeys(row["person"] for row in rows))[first : first + count]
    return [row for name in names for row in [r for r in rows if r["person"] == name][:ROWS_A_PERSON]]


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file


def train_reciter(folder: Path) -> Reciter:
    """Train in a process of its own; mean answer probability is 0.97 or more, and every answer token's argmax right."""
    forget, retain = people(FORGET_PEOPLE), people(RETAIN_PEOPLE, first=FORGET_PEOPLE)
    every = write_lines(folder / "every.jsonl", forget + retain)
    command = [sys.executable, "-m", "core.scratch", str(every), "--out", str(folder / "model"), "--threads", "1"]
    command += ["--hidden", "96", "--layers", "2", "--vocab", "1000", "--lr", "6e-3", "--reached", "0.97"]
    made = subprocess.run(command, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, check=False)
    if made.returncode:
        raise RuntimeError(f"training the reciter failed:\n{made.stderr.decode()}")
    return Reciter(
        folder / "model", write_lines(folder / "forget.jsonl", forget), write_lines(folder / "retain.jsonl", retain)
    )
