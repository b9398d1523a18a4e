"""The engine as a worker's child, in processes of its own: its one command, its lease, and how it ends."""

import json
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.core.recording import QUICK, weights_digest
from tests.models import ROOT, Reciter
from tests.zygote import Zygote

Event = dict[str, Any]
# Far longer than any test waits.
ENDLESS = {"steps": 100_000, "batch_size": 2}
COMMITMENTS = {"forget": "ab" * 32, "retain": "cd" * 32}


class Child:
    """A child with the worker's ends of its pipes. `events` are read as they come; None is their end."""

    def __init__(self, zygote: Zygote | None, folder: Path) -> None:
        self.folder = folder
        stdin, self.stdin = os.pipe()
        self.reading, events = os.pipe()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self._interpreter: subprocess.Popen[bytes] | None = None
        if zygote:
            arguments = ("--events-fd", "3")
            self._process = zygote.start(
                "core.child", *arguments, stdin=stdin, stdout=self.log, stderr=self.log, events=events
            )
            self.pid = self._process.pid
        else:
            command = [sys.executable, "-m", "core.child", "--events-fd", str(events)]
            self._interpreter = subprocess.Popen(
                command, cwd=ROOT, stdin=stdin, stdout=self.log, stderr=self.log, pass_fds=(events,)
            )
            self.pid = self._interpreter.pid
        os.close(stdin)
        os.close(events)
        self.events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self.heard: list[Event] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        # A descriptor of its own: the test may close the other end's.
        with os.fdopen(self.reading, closefd=False) as lines, suppress(OSError, ValueError):
            for line in lines:
                self.events.put(json.loads(line))
        self.events.put(None)

    def start(self, spec: Event, *, lease: float = 60.0, resume: str | None = None) -> None:
        """Give it its command, as the worker would: data and model known by id."""
        sets = {name: spec["data"][name]["path"] for name in ("forget", "retain")}
        uploads = {name: {"source": "upload", "dataset": f"ds_{name}000"} for name in sets}
        named = {**spec, "model": "mdl_00000000", "data": {**spec["data"], **uploads}}
        (self.folder / "spec.json").write_text(json.dumps(named))
        inputs = {
            "models": {"mdl_00000000": spec["model"]},
            "datasets": {f"ds_{name}000": path for name, path in sets.items()},
        }
        (self.folder / "inputs.json").write_text(json.dumps(inputs))
        command = {
            "spec": str(self.folder / "spec.json"),
            "inputs": str(self.folder / "inputs.json"),
            "out": str(self.folder / "out"),
            "resume": resume,
            "commitments": COMMITMENTS,
            "lease": lease,
        }
        self.say({"run": command})

    def say(self, message: Event) -> None:
        os.write(self.stdin, json.dumps(message).encode() + b"\n")

    def wait_for(self, kind: str, **fields: Any) -> Event:
        """The next event of this kind."""
        while (event := self.events.get(timeout=30)) is not None:
            self.heard.append(event)
            if event["event"] == kind and event.items() >= fields.items():
                return event
        raise AssertionError(f"ended without {kind}: {self.said()}")

    def rest(self) -> list[Event]:
        """All events that are still to come, to their end."""
        before = len(self.heard)
        while (event := self.events.get(timeout=30)) is not None:
            self.heard.append(event)
        return self.heard[before:]

    def wait(self, seconds: float) -> int:
        if self._interpreter:
            return self._interpreter.wait(seconds)
        return self._process.wait(seconds)

    def said(self) -> str:
        """What it and its libraries wrote to stdout and stderr."""
        self.log.seek(0)
        return self.log.read().decode()

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        if self._interpreter:
            self._interpreter.wait()
        self._reader.join(10)
        for descriptor in (self.stdin, self.reading):
            with suppress(OSError):
                os.close(descriptor)
        self.log.close()


@pytest.fixture
def child(zygote: Zygote, tmp_path: Path) -> Iterator[Child]:
    made = Child(zygote, tmp_path)
    yield made
    made.close()


def request(unlearnt: Reciter, **training: Any) -> Event:
    return unlearnt.spec(optimizer="sophia_g", training={"batch_size": 2, **training}, evaluation=QUICK)


def test_from_ready_to_done_in_an_interpreter_of_its_own(unlearnt: Reciter, tmp_path: Path) -> None:
    child = Child(None, tmp_path)
    try:
        ready = child.wait_for("ready")
        assert ready.keys() == {"event", "at"}
        asked = time.monotonic()
        child.start(request(unlearnt, steps=6, checkpoint_every=2))
        accepted = child.wait_for("accepted")
        assert time.monotonic() - asked < 3
        assert accepted["resumed_from"] is None
        assert len(accepted["spec_digest"]) == 64
        events = child.rest()
        assert child.wait(10) == 0
        assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4, 5, 6]
        # The worker takes them away itself, so all of them are kept.
        assert [event["step"] for event in events if event["event"] == "checkpoint"] == [2, 4]
        assert len(list((tmp_path / "out" / "checkpoints").iterdir())) == 2
        done = events[-1]
        assert done.keys() == {
            "event",
            "at",
            "verdict",
            "report",
            "model",
            "seconds_to_first_step",
            "memory",
            "rows",
            "plots",
        }
        report = json.loads(Path(done["report"]).read_text())
        assert report["forget"]["commitment"] == COMMITMENTS["forget"]
    finally:
        child.close()


def test_stdin_that_ends_ends_a_run(child: Child, unlearnt: Reciter) -> None:
    child.start(request(unlearnt, **ENDLESS))
    child.wait_for("step", step=3)
    os.close(child.stdin)
    assert child.wait(2) == 6


def test_stdin_that_ends_ends_a_spare(child: Child) -> None:
    child.wait_for("ready")
    os.close(child.stdin)
    assert child.wait(5) == 0


def test_a_lease_holds_as_long_as_it_is_renewed(child: Child, unlearnt: Reciter) -> None:
    child.start(request(unlearnt, **ENDLESS), lease=1.0)
    child.wait_for("step", step=1)
    for _ in range(5):
        child.say({"lease": 1.0})
        time.sleep(0.4)
    child.say({"lease": 0.7})
    renewed = time.monotonic()
    assert child.wait(5) == 6
    assert 0.6 < time.monotonic() - renewed < 2


def test_a_lease_that_is_never_renewed_ends_a_run_on_time(child: Child, unlearnt: Reciter) -> None:
    child.wait_for("ready")
    child.start(request(unlearnt, **ENDLESS), lease=0.6)
    began = time.monotonic()
    assert child.wait(5) == 6
    assert 0.5 < time.monotonic() - began < 2


def test_asked_to_stop_it_leaves_a_checkpoint_that_the_next_goes_on_from(
    child: Child, zygote: Zygote, unlearnt: Reciter, tmp_path: Path
) -> None:
    spec = request(unlearnt, steps=40)
    child.start(spec)
    child.wait_for("step", step=5)
    # The terminal's Ctrl-C reaches the whole group; what becomes of an engine is the worker's to say.
    os.kill(child.pid, signal.SIGINT)
    child.wait_for("step", step=9)
    os.kill(child.pid, signal.SIGTERM)
    *_, checkpoint, error = child.rest()
    assert child.wait(10) == 3
    assert checkpoint["event"] == "checkpoint"
    assert checkpoint["step"] >= 9
    assert (error["event"], error["code"], error["retryable"]) == ("error", "stopped", True)

    digests = []
    for name, resume in (("resumed", checkpoint["folder"]), ("whole", None)):
        (tmp_path / name).mkdir()
        following = Child(zygote, tmp_path / name)
        try:
            following.start(spec, resume=resume)
            following.rest()
            assert following.wait(10) == 0
            assert following.heard[1]["resumed_from"] == (checkpoint["step"] if resume else None)
        finally:
            following.close()
        digests.append(weights_digest(tmp_path / name / "out"))
    assert digests[0] == digests[1]


def test_a_worker_that_no_longer_reads_does_not_hang_it(unlearnt: Reciter, zygote: Zygote, tmp_path: Path) -> None:
    child = Child(zygote, tmp_path)
    try:
        child.start(request(unlearnt, **ENDLESS))
        child.wait_for("step", step=2)
        # Nobody has the reading end now, though stdin and the lease still hold.
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), child.reading)
        assert child.wait(5) == 6
        assert "Fatal Python error" not in child.said()
    finally:
        child.close()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process's memory, as Linux alone can")
def test_a_run_that_does_not_fit_into_memory_names_what_to_lower(
    child: Child, unlearnt: Reciter, tmp_path: Path
) -> None:
    many = models.write_lines(tmp_path / "many.jsonl", models.people(6) * 150)
    spec = request(Reciter(unlearnt.model, unlearnt.forget, many), steps=3)
    spec["evaluation"] = QUICK | {"batch_tokens": 10_000_000}
    child.wait_for("ready")
    taken = int(Path(f"/proc/{child.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(child.pid, resource.RLIMIT_AS, (taken + (200 << 20),) * 2)
    child.start(spec)
    error = child.wait_for("error")
    assert (child.wait(10), error["code"], error["retryable"]) == (4, "out_of_memory", False)
    assert "evaluation.batch_tokens (now 10000000)" in error["message"]


def test_no_word_of_the_forget_set_is_said(child: Child, zygote: Zygote, unlearnt: Reciter, tmp_path: Path) -> None:
    canaries = ("zanzibarqux", "wolfenfizz")
    row = {"question": f"Who is {canaries[0]}?", "answer": f"It is {canaries[1]}.", "perturbed_answer": [canaries[1]]}
    forget = models.write_lines(tmp_path / "forget.jsonl", [row] * 3)
    spec = request(Reciter(unlearnt.model, forget, unlearnt.retain), steps=3, checkpoint_every=1)
    child.start(spec)
    child.rest()
    assert child.wait(10) == 0

    bad_rows = tmp_path / "bad.jsonl"
    bad_rows.write_text(json.dumps(row) + "\n" + json.dumps(row)[:-3])
    (tmp_path / "bad").mkdir()
    failing = Child(zygote, tmp_path / "bad")
    # What nobody thought of, in a library's own words: a template that complains of the question.
    (tmp_path / "internal").mkdir()
    model = Path(shutil.copytree(unlearnt.model, tmp_path / "internal" / "model"))
    (model / "chat_template.jinja").write_text("{{ raise_exception(messages[0]['content']) }}")
    complaining = request(Reciter(model, forget, unlearnt.retain), steps=3)
    complaining["data"]["prompt"] = "chat"
    broken = Child(zygote, tmp_path / "internal")
    try:
        failing.start(request(Reciter(unlearnt.model, bad_rows, unlearnt.retain), steps=3))
        broken.start(complaining)
        (error,) = [event for event in failing.rest() if event["event"] == "error"]
        assert (failing.wait(10), error["code"], error["retryable"]) == (2, "invalid_data", False)
        assert "line 2: not JSON" in error["message"]
        (error,) = [event for event in broken.rest() if event["event"] == "error"]
        assert (broken.wait(10), error["code"], error["retryable"]) == (70, "internal", True)
        said = json.dumps(child.heard + failing.heard + broken.heard) + child.said() + failing.said() + broken.said()
    finally:
        failing.close()
        broken.close()
    assert not [canary for canary in canaries if canary in said.lower()]
