"""An engine that computes nothing: a child process that keeps all of the engine's protocol and takes milliseconds.

`noop_engine.program(folder)` makes a program for `LETHE_ENGINE_PYTHON`. It takes leases, stops on SIGTERM with a
checkpoint, goes on from one, and leaves a model whose bytes follow from seed and steps alone, whatever came between.
What runs as the engine needs the standard library only, so that it starts in the time that Python takes to start.
"""

import hashlib
import json
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

_STOPPED, _LEASE_LOST = 3, 6
_WEIGHTS = "model.safetensors"


def program(folder: Path, *, seconds: float = 0.0) -> Path:
    """Write the program, and what it needs, into `folder`; its jobs take `seconds` beyond their own writing."""
    template = folder / "noop-report.json"
    template.write_text(json.dumps(_template()))
    called = [sys.executable, "-S", "-E", str(Path(__file__).resolve()), str(template), str(seconds)]
    written = folder / "noop-engine"
    # The whole command line is kept: it is by `core.child` in it that an engine is known among other processes.
    written.write_text(f'#!/bin/sh\nexec {shlex.join(called)} "$@"\n')
    written.chmod(0o755)
    return written


def _template() -> dict[str, Any]:
    """A report as the schema wants it, but for what is this job's own."""
    from core.report.schema import Absent, DataUsed, Environment, Measured, Report, TrainingDone, Verdict

    nothing = Absent(absent="this engine computes nothing")
    scores = {"forget.probability": Measured(value=0.5, rows=1, low=0.4, high=0.6)}
    return Report(
        spec={},
        spec_digest="0" * 64,
        seed=0,
        started_at="2026-01-01T00:00:00Z",
        finished_at="2026-01-01T00:00:00Z",
        input_model="0" * 64,
        output_model="0" * 64,
        output_files={},
        forget=DataUsed(rows=1, answer_tokens=1, taken=[(0, 0)], too_long=[], commitment=nothing, committed=nothing),
        retain=nothing,
        beside={},
        before=scores,
        after=scores,
        training=TrainingDone(
            steps=0,
            planned_steps=0,
            delivered_step=0,
            stopped_early=False,
            resumed_from=nothing,
            seconds=0.0,
            seconds_to_first_step=nothing,
            final_loss=nothing,
            clip_fraction=nothing,
            curve=[],
            looks=[],
        ),
        verdict=Verdict(verdict="passed", reasons=["nothing was asked"], gates=[]),
        environment=Environment(
            python="3", platform="none", device="cpu", threads=1, memory_bytes=0, versions={}, network="off"
        ),
        limitations=["Nothing was computed."],
    ).model_dump(mode="json")


class _Run:
    """One job, as the engine would carry it out."""

    def __init__(self, command: dict[str, Any], say: Any, stop: threading.Event) -> None:
        self.command, self.say, self.stop = command, say, stop
        self.out = Path(command["out"])
        self.spec = json.loads(Path(command["spec"]).read_text())
        training = self.spec["training"]
        self.steps = training.get("steps") or 4
        self.every = training.get("checkpoint_every") or self.steps + 1
        self.digest = hashlib.sha256(_canonical(self.spec)).hexdigest()
        self.step, self.state = 0, hashlib.sha256(str(self.spec["seed"]).encode()).digest()
        if command["resume"]:
            kept = json.loads((Path(command["resume"]) / "state.json").read_text())
            self.step, self.state = kept["step"], bytes.fromhex(kept["state"])
        self.resumed = self.step if command["resume"] else None
        self.saved = self.step

    def carry_out(self, template: dict[str, Any], seconds: float) -> int:
        """All phases; returns the exit code."""
        self.say("accepted", spec_digest=self.digest, resumed_from=self.resumed)
        for phase in ("load", *(("score_before", "reference") if self.resumed is None else ()), "train"):
            if not self._phase(phase, seconds):
                return self._stopped()
            if phase == "score_before":
                self.say("scores", when="before", metrics=template["before"])
        while self.step < self.steps:
            if self._waited(seconds / 2 / self.steps):
                return self._stopped()
            self.step, self.state = self.step + 1, hashlib.sha256(self.state).digest()
            left = (self.steps - self.step) * seconds / self.steps
            self.say("step", step=self.step, steps=self.steps, loss=1 / self.step, seconds_left=left)
            if self.step % self.every == 0 and self.step < self.steps:
                self._checkpoint()
        if not self._phase("score_after", seconds):
            return self._stopped()
        self.say("scores", when="after", metrics=template["after"])
        if not self._phase("report", seconds):
            return self._stopped()
        self._report(template)
        return 0

    def _phase(self, name: str, seconds: float) -> bool:
        """Begin a phase, and stay in it for a while; False where it was told to stop."""
        self.say("phase", phase=name)
        return not self._waited(seconds / 12)

    def _waited(self, seconds: float) -> bool:
        return (seconds > 0 and self.stop.wait(seconds)) or self.stop.is_set()

    def _stopped(self) -> int:
        if self.step != self.saved:
            self._checkpoint()
        told = {"code": "stopped", "message": "stopped on request", "param": None, "retryable": True}
        self.say("error", **told)
        return _STOPPED

    def _checkpoint(self) -> None:
        folder = self.out / "checkpoints" / f"step-{self.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        kept = json.dumps({"step": self.step, "state": self.state.hex()})
        (folder / "state.json").write_text(kept)
        files = {"state.json": hashlib.sha256(kept.encode()).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps({"step": self.step, "files": files}))
        self.saved = self.step  # As the engine does: none is told twice, while the worker may be taking it away.
        self.say("checkpoint", step=self.step, folder=str(folder))

    def _report(self, report: dict[str, Any]) -> None:
        header = _canonical({"weight": {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}})
        contents = {
            "config.json": _canonical({"architectures": ["LlamaForCausalLM"]}),
            _WEIGHTS: len(header).to_bytes(8, "little") + header + self.state,
        }
        (self.out / "model").mkdir()
        digests = {}
        for name, content in contents.items():
            (self.out / "model" / name).write_bytes(content)
            digests[name] = hashlib.sha256(content)
        report |= {
            "seed": self.spec["seed"],
            "input_model": self.command["model_digest"] or "0" * 64,
            "output_model": hashlib.sha256(b"".join(d.digest() for d in digests.values())).hexdigest(),
            "output_files": {name: d.hexdigest() for name, d in digests.items()},
        }
        report["training"] |= {"steps": self.step, "planned_steps": self.steps, "delivered_step": self.step}
        shared = [self._request(report, member, member["job"]) for member in self.command.get("members", ())]
        told = {"members": shared} if shared else self._request(report, self.command, ".")
        self.say("done", model=str(self.out / "model"), **told)

    def _request(self, report: dict[str, Any], asked: dict[str, Any], place: str) -> dict[str, Any]:
        """Write the report of the only request or of one of several, and return what the last event tells of it."""
        spec = json.loads(Path(asked["spec"]).read_text())
        commitment = asked["commitments"].get("forget") or report["forget"]["commitment"]
        own = {"spec": spec, "spec_digest": hashlib.sha256(_canonical(spec)).hexdigest()}
        file = self.out / place / "report.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({**report, **own, "forget": {**report["forget"], "commitment": commitment}}))
        return {"job": asked.get("job"), "verdict": report["verdict"]["verdict"], "report": str(file)}


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _keep_lease(seconds: float) -> None:
    """End the process when the lease passes without renewal, or when stdin ends."""
    deadline = [time.monotonic() + seconds]

    def read() -> None:
        for line in sys.stdin:
            deadline[0] = time.monotonic() + json.loads(line)["lease"]
        os._exit(_LEASE_LOST)

    threading.Thread(target=read, daemon=True).start()
    while time.monotonic() < deadline[0]:
        time.sleep(0.05)
    os._exit(_LEASE_LOST)


def _main() -> None:
    template, seconds, descriptor = sys.argv[1], float(sys.argv[2]), int(sys.argv[-1])
    stop, lock = threading.Event(), threading.Lock()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(descriptor, "w") as events:

        def say(kind: str, **fields: Any) -> None:
            with lock:
                events.write(json.dumps({"event": kind, "at": round(time.time(), 3), **fields}) + "\n")
                events.flush()

        try:
            say("ready")
            line = sys.stdin.readline()
            if not line:
                return
            command = json.loads(line)["run"]
            threading.Thread(target=_keep_lease, args=(command["lease"],), daemon=True).start()
            code = _Run(command, say, stop).carry_out(json.loads(Path(template).read_text()), seconds)
        except BrokenPipeError:
            code = _LEASE_LOST
    os._exit(code)


if __name__ == "__main__":
    _main()
