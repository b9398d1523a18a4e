"""`lethe demo`: a small model that recites a set of invented people is made to forget two of them, through the service.

Everything goes the way a real request goes: upload, `POST /jobs`, live events, report, signature check.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.client import Client
from api.embedded import EmbeddedError, Service
from core.report.verify import verify_files

_ROOT = Path(__file__).resolve().parent.parent
PEOPLE = _ROOT / "examples" / "people.jsonl"
FORGOTTEN = 2

REQUEST: dict[str, Any] = {
    "method": {"name": "npo", "beta": 0.1, "retain": {"name": "nll"}},
    "optimizer": {"name": "sophia_g", "lr": 3e-4, "gamma": 1.0, "every": 5},
    "training": {"steps": 40, "batch_size": 10, "stop_when": {}},
    "evaluation": {"max_new_tokens": 48},
    "gates": [
        {"metric": "forget.probability", "at_most": 0.1, "interval": True},
        {"metric": "forget.rouge_l", "at_most": 0.4, "interval": True},
        {"metric": "forget.repetition", "at_most": 0.3},
        {"metric": "retain.probability", "relative_to": "before", "at_least": 0.85},
        {"metric": "retain.rouge_l", "relative_to": "before", "at_least": 0.85},
    ],
    "reason": "gdpr_art_17",
    "reference": "demo",
}


class Show:
    """What the demo tells while it runs."""

    def say(self, text: str) -> None:
        """A sentence about what happens next."""

    def progress(self, phase: str, done: float, total: float, note: str) -> None:
        """How far a phase is."""


@dataclass(frozen=True)
class Result:
    """The demo's outcome, as `--json` prints it."""

    document: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether the verdict is `passed` and the evidence verifies."""
        return self.document["verdict"] == "passed" and bool(self.document["signature_verified"])


def run(service: Service, show: Show, tend: Callable[[], None]) -> Result:
    """Train the demo model where there is none yet, forget two people, and gather what came of it.

    `tend` is called often, to look after the service's parts. Raises EmbeddedError or ServiceError where a step of
    the way fails.
    """
    began = time.monotonic()
    rows = [json.loads(line) for line in PEOPLE.read_text(encoding="utf-8").splitlines()]
    people = list(dict.fromkeys(row["person"] for row in rows))[:FORGOTTEN]
    sets = {
        "forget": [row for row in rows if row["person"] in people],
        "retain": [row for row in rows if row["person"] not in people],
    }
    model = _demo_model(service.home / "models" / "people", show, tend)
    model_seconds = time.monotonic() - began
    service.wait_ready()
    assert service.new_key is not None
    with Client(service.url, service.new_key, tend) as client:
        show.say(f"Uploading what to forget ({' and '.join(people)}: {len(sets['forget'])} answers) and what to keep.")
        data = {name: {"source": "upload", "dataset": client.upload(rows)} for name, rows in sets.items()}
        registered = client.register(model)
        posted = time.monotonic()
        job = client.submit({"model": registered, "data": data, **REQUEST})
        show.say(f"POST /jobs -> {job}")
        client.follow(job, lambda _, event: _show_event(event, show))
        job_seconds = time.monotonic() - posted
        folder = client.download(job, service.home / "runs" / job)
    report = json.loads((folder / "report.json").read_text())
    questions = [row["question"] for row in (sets["forget"][0], sets["forget"][-1], sets["retain"][0])]
    show.say("Asking both models three questions ...")
    checked = verify_files(folder / "report.json", folder / "model", service.public_key)
    return Result(
        {
            "verdict": report["verdict"]["verdict"],
            "reasons": report["verdict"]["reasons"],
            "before": {name: m.get("value") for name, m in report["before"].items()},
            "after": {name: m.get("value") for name, m in report["after"].items()},
            "questions": _ask(questions, model, folder / "model"),
            "signature_verified": checked.ok,
            "job": job,
            "paths": {
                "report": str(folder / "report.json"),
                "signed_report": str(folder / "report.dsse.json"),
                "model": str(folder / "model"),
                "public_key": str(service.public_key),
            },
            "seconds": {
                "total": round(time.monotonic() - began, 1),
                "demo_model": round(model_seconds, 1),
                "job": round(job_seconds, 1),
                "to_first_step": report["training"]["seconds_to_first_step"],
            },
        }
    )


def _demo_model(folder: Path, show: Show, tend: Callable[[], None]) -> Path:
    """The cached demo model, trained now where there is none; a half-made one is never taken for it."""
    if (folder / "config.json").exists():
        return folder
    show.say("Training the demo model until it recites 12 invented people (once; it is kept) ...")
    draft = folder.with_name(f".{folder.name}.part")
    command = [sys.executable, "-m", "core.scratch", str(PEOPLE), "--out", str(draft)]
    last: dict[str, Any] = {}
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as trainer:
        assert trainer.stdout is not None
        try:
            for line in trainer.stdout:
                tend()
                last = json.loads(line)
                if last["event"] == "step":
                    show.progress("demo model", last["step"], last["steps"], f"loss {last['loss']:.3f}")
        except BaseException:
            trainer.kill()
            raise
    if trainer.returncode or last.get("event") != "done":
        raise EmbeddedError(f"Training the demo model ended with code {trainer.returncode}.")
    draft.replace(folder)
    return folder


def _show_event(data: Mapping[str, Any], show: Show) -> None:
    if "step" in data and "steps" in data:
        note = f"loss {data['loss']:.3f}, {data['seconds_left']:.0f} s left"
        show.progress("unlearning", data["step"], data["steps"], note)
    elif "phase" in data:
        show.progress(data["phase"], 0, 1, "")


def _ask(questions: list[str], before: Path, after: Path) -> list[dict[str, str]]:
    asked = subprocess.run(
        [sys.executable, "-m", "core.ask", "--model", str(before), "--model", str(after)],
        cwd=_ROOT,
        input="".join(json.dumps(question) + "\n" for question in questions),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line)["answers"] for line in asked.stdout.splitlines()]
    return [
        {"question": question, "before": before, "after": after}
        for question, (before, after) in zip(questions, answers, strict=True)
    ]
