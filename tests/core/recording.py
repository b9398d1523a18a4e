"""Runs carried out in this process, with their events kept, and stopped where a test wants them stopped."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core import checkpoint
from core.data import Inputs
from core.errors import Stopped
from core.events import StopFlag
from core.run import Outcome, run
from core.spec.job import parse

# Short looks and short answers: a random model has nothing to say.
QUICK = {"max_new_tokens": 3, "bootstrap": 100}


class Recorder:
    """Listens to a run. `stop_when` is asked of every event; the first yes sets the flag."""

    def __init__(self, stop_when: Callable[[dict[str, Any]], bool] = lambda _: False) -> None:
        self.events: list[dict[str, Any]] = []
        self.stop = StopFlag()
        self._stop_when = stop_when

    def __call__(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})
        if self._stop_when(self.events[-1]):
            self.stop.set()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [event for event in self.events if event["event"] == kind]


def carry_out(wanted: Mapping[str, Any], out: Path, recorder: Recorder | None = None, **how: Any) -> Outcome:
    """A run of this spec, resumed from the last checkpoint in `out` if there is one."""
    heard = recorder or Recorder()
    spec = parse({"evaluation": QUICK, **wanted})
    resume = checkpoint.latest(out / "checkpoints")
    return run(spec, Inputs(), out, emit=heard, stop=how.pop("stop", heard.stop), resume=resume, **how)


def interrupted(wanted: Mapping[str, Any], out: Path, step: int, **how: Any) -> Recorder:
    """A run that was stopped after this step."""
    heard = Recorder(lambda e: e["event"] == "step" and e["step"] == step)
    try:
        carry_out(wanted, out, heard, **how)
    except Stopped:
        return heard
    raise AssertionError(f"the run was not stopped at step {step}")


def weights_digest(out: Path) -> str:
    """SHA-256 of the final weights in a run's output folder."""
    return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()
