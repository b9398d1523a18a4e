"""One of two processes that carry out several runs together: `python -m tests.core.together RANK FOLDER`.

FOLDER/runs.json has the spec of each by its name, and the checkpoint, if any, that it goes on from.
"""

import json
import os
import sys
from pathlib import Path

from core.data import Inputs
from core.events import StopFlag
from core.parallel import launch
from core.parallel.peers import Place, Task
from core.spec.job import parse
from tests import tiny


def main() -> None:
    """Every run of the folder, in this process's place."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for name, (spec, begun) in json.loads((folder / "runs.json").read_text()).items():
        place = Place(rank, 2, rank, 2, str(folder / f"meeting-{name}"))
        task = Task(parse(spec), Inputs(), folder / "two" / name, resume=folder / begun if begun else None)
        launch.carry_out(task, tiny.silent, StopFlag(), place)


if __name__ == "__main__":
    main()
