"""An engine that computes nothing: a real child process that says, and leaves behind, what a test has prepared."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from worker.engine import Engine, Spare

_ENGINE = """
import json, os, shutil, sys

prepared, descriptor = sys.argv[1], int(sys.argv[-1])
with os.fdopen(descriptor, "w", buffering=1) as events:
    print('{"event": "ready"}', file=events)
    out = json.loads(sys.stdin.readline())["run"]["out"]
    shutil.copytree(os.path.join(prepared, "out"), out, dirs_exist_ok=True)
    with open(os.path.join(prepared, "events.jsonl")) as lines:
        for line in lines:
            events.write(line.replace("OUT", out))
"""


class Scripted(Spare):
    """Hands out engines that leave all of `folder/out` and say these events; `OUT` in them is the attempt's folder."""

    def __init__(self, folder: Path, events: Iterable[Mapping[str, Any]]) -> None:
        super().__init__()
        (folder / "out").mkdir(parents=True, exist_ok=True)
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        (folder / "engine.py").write_text(_ENGINE)
        self.python = folder / "python"
        self.python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{folder}/engine.py" "{folder}" "$@"\n')
        self.python.chmod(0o755)

    def refill(self) -> None:
        """None is kept warm."""

    def take(self) -> Engine:
        """A new one."""
        return Engine(python=str(self.python))
