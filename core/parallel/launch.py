"""From a task to the processes that carry it out: those that torchrun or `accelerate launch` started, or our own.

Everything is refused here that several processes cannot do, before any of them has read a weight.
"""

import datetime
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import Problem, SpecError
from core.events import Emit, StopFlag
from core.parallel.peers import Place, Task, peers
from core.spec.job import JobSpec

if TYPE_CHECKING:
    from core.parallel.processes import Processes
    from core.run import Outcome


def carry_out(task: Task, emit: Emit, stop: StopFlag, place: Place | None = None) -> "Outcome":
    """The run, in as many processes as it shall have; only the first speaks. Raises the errors of core.errors."""
    from core.environment import memory_for
    from core.run import run

    with _together(task, emit, place or started_as()) as world, memory_for(task.spec):
        return run(
            task.spec,
            task.inputs,
            task.out,
            emit=emit if world.first else _silent,
            stop=world.flag(stop),
            resume=task.resume,
            commitments=task.commitments,
            model_digest=task.model_digest,
            keep_checkpoints=task.keep_checkpoints,
            members=task.members,
            processes=world,
        )


def started_as() -> Place | None:
    """What torchrun, `accelerate launch` or mpirun says of this process; None where it was started alone."""
    for rank, size, local, beside in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ):
        if {rank, size} <= os.environ.keys() and int(os.environ[size]) > 1:
            place = Place(
                rank=int(os.environ[rank]),
                size=int(os.environ[size]),
                local_rank=int(os.environ.get(local, os.environ[rank])),
                beside=int(os.environ.get(beside, os.environ[size])),
            )
            # What torch itself reads when the processes meet.
            os.environ.setdefault("RANK", str(place.rank))
            os.environ.setdefault("WORLD_SIZE", str(place.size))
            return place
    return None


def wanted(spec: JobSpec) -> int:
    """How many processes a run that was started alone shall have: as its spec says, else LETHE_PROCESSES, else one."""
    if spec.training.processes is not None:
        return spec.training.processes
    said = os.environ.get("LETHE_PROCESSES") or "1"
    if not said.isdecimal() or not 1 <= int(said) <= 1024:
        raise _refused("training.processes", said, "LETHE_PROCESSES must be a whole number from 1 to 1024")
    return int(said)


@contextmanager
def _together(task: Task, emit: Emit, place: Place | None) -> Iterator["Processes"]:
    """This process among those of the run. Processes of ours are started here, and end with the block."""
    from core.parallel.processes import ALONE

    if place is None:
        count = wanted(task.spec)
        if count == 1:
            yield ALONE
            return
        _check_room(count)
        _check_method(task.spec)
        with tempfile.TemporaryDirectory(prefix="lethe-") as folder, _on_loopback():
            places = [Place(i, count, i, count, str(Path(folder) / "meeting")) for i in range(count)]
            with peers(task, places[1:], emit), _joined(task.spec, places[0]) as world:
                yield world
        return
    asked = task.spec.training.processes
    if asked not in (None, place.size):
        raise _refused("training.processes", asked, f"this run was started as {place.size} processes")
    if place.store is None:
        _check_room(place.local_rank + 1)
        _check_method(task.spec)
    with _joined(task.spec, place) as world:
        yield world


@contextmanager
def _joined(spec: JobSpec, place: Place) -> Iterator["Processes"]:
    import torch
    from torch import distributed

    from core.parallel.processes import Processes

    cuda = _on_cuda()
    if cuda:
        torch.cuda.set_device(place.local_rank)
    how: dict[str, Any] = {}
    if place.store is not None:
        how = {"init_method": Path(place.store).as_uri(), "rank": place.rank, "world_size": place.size}
    # The first process may write for long while the others wait; those that die are noticed otherwise.
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=datetime.timedelta(minutes=30), **how
    )
    yield Processes(
        place.rank,
        place.size,
        place.beside,
        torch.device("cuda", place.local_rank) if cuda else torch.device("cpu"),
        sharded=spec.training.sharding == "fsdp",
    )
    # Not after an error: somebody may still wait for an answer of ours, and dying gives it.
    distributed.destroy_process_group()


def _check_room(count: int) -> None:
    """Raises SpecError where this machine has not as many devices."""
    import torch

    from core.environment import available_threads

    if _on_cuda():
        there, what = torch.cuda.device_count(), "GPUs that this run may use"
    else:
        # Two can be tried anywhere.
        there, what = max(2, available_threads()), "processes that this machine's CPUs allow"
    if count > there:
        raise _refused("training.processes", count, f"at most {there}, the {what}")


def _check_method(spec: JobSpec) -> None:
    """Raises SpecError for what several processes cannot do, where it is not the spec that asks for them."""
    if spec.method.name == "influence":
        # Each would solve alone, and end by its own residual: rounding may part them, and one wait for ever.
        raise _refused("method.name", "influence", "is solved in one process; set training.processes to 1")


def _refused(param: str, value: Any, allowed: str) -> SpecError:
    return SpecError([Problem(param, value, f"{allowed} (got {json.dumps(value)}).")])


def _on_cuda() -> bool:
    import torch

    # `accelerate launch --cpu` says so.
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Processes on one machine talk by no other interface."""
    name = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    yield


def _silent(event: str, **fields: Any) -> None:
    """Listens, and says nothing."""
