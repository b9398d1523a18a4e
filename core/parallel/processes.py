"""The processes that train one model together: what they tell each other, and how the model is shared between them.

Alone there is one, and everything here does nothing. Copies (DDP) hold the whole model each and share rows and scoring;
shards (FSDP2) hold a part each and go through every forward pass together (sharding.py).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from core.errors import Stopped
from core.events import StopFlag
from core.parallel import sharding

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process's place among those that share a run; `beside` counts those on this machine, itself included.

    `device`: the one it is given; None leaves it the machine's. `sharded`: each holds a part of the model.
    """

    rank: int = 0
    size: int = 1
    beside: int = 1
    device: torch.device | None = None
    sharded: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks, writes and decides."""
        return self.rank == 0

    def wrap(self, objective: Any) -> torch.nn.Module:
        """The module whose backward pass averages gradients over processes. To be called before an optimizer is built:
        sharding replaces parameters."""
        if self.size == 1 or not any(p.requires_grad for p in objective.parameters()):
            return objective  # type: ignore[no-any-return]
        if self.sharded:
            sharding.shard(objective, self.device or torch.device("cpu"))
            return objective  # type: ignore[no-any-return]
        from torch.nn.parallel import DistributedDataParallel

        # A method that looks inside runs no layer above the one it looks at, where all its sets do.
        inside = any("layer" in needs for needs in objective.needs.values())
        with warnings.catch_warnings():
            # A later torch names the first of these otherwise, and says so.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                objective, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=inside
            )

    def within(self, objective: Any, work: Callable[[], T]) -> T:
        """The work, with the model in the form in which it can be called from outside a training pass."""
        return sharding.within(objective, work) if self.sharded and self.size > 1 else work()

    def synchronised(self, module: Any, last: bool) -> AbstractContextManager[object]:
        """Around a pass forward and back: of copies only the step's last one talks to the others. Shards always do:
        unsharded gradients of several passes would be as large as the model."""
        if self.size == 1 or last or not hasattr(module, "no_sync"):
            return nullcontext()
        return module.no_sync()  # type: ignore[no-any-return]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, on every one of them."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    def over_shards(self, tensor: Tensor) -> Tensor:
        """The sum over processes of what each has counted of its own shard; copies have all counted the same."""
        return self.sum(tensor) if self.sharded else tensor

    def whole(self, tensor: Any) -> Tensor:
        """A tensor that may be sharded, or a sum over shards, as a plain one on every process."""
        return sharding.whole(tensor)

    def in_memory(self, tensors: Iterable[tuple[str, Tensor]], *, copy: bool = False) -> dict[str, Tensor]:
        """Whole tensors in main memory, in the first process alone; one after the other, since shards are for models
        that fit nowhere whole but there. Those that are there already are themselves, unless as a `copy`."""
        made = {}
        for name, tensor in tensors:
            full = self.whole(tensor)
            if self.first:
                made[name] = full.to("cpu", copy=copy).contiguous()
        return made

    def put_together(self, model: torch.nn.Module) -> None:
        """Make the first process's model a plain one, to be saved and no longer run."""
        if self.sharded and self.size > 1:
            sharding.put_together(model, keep=self.first)

    def agree(self, wish: bool) -> bool:
        """What the first process wishes, on every one of them."""
        return self.from_first(lambda: wish)

    def any(self, wish: bool) -> bool:
        """Whether one of them wishes it."""
        if self.size == 1:
            return wish
        wishes = torch.tensor(int(wish))
        torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX)
        return bool(wishes)

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, on every one of them; the others wait for it."""
        if self.size == 1:
            return make()
        box = [make() if self.first else None]
        torch.distributed.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]

    def apart(self, work: Callable[[StopFlag], T], stop: StopFlag) -> T:
        """What the first process makes of work that each copy does by itself, hearing of nobody else meanwhile: what
        goes wrong in one of them then leaves no other waiting. Raises Stopped, in all, where one was asked to stop.

        Shards cannot stop apart, and do not stop here.
        """
        if self.size == 1:
            return work(stop)
        made: T | None = None
        stopped = False
        try:
            made = work(StopFlag() if self.sharded else _OwnStop(stop))
        except Stopped:
            stopped = True
        if self.any(stopped):
            raise Stopped("stopped on request")
        return self.from_first(lambda: made)  # type: ignore[return-value]

    def turns(self, work: Sequence[T]) -> Iterator[tuple[Sequence[T], T | None]]:
        """Work that each copy can do a part of: what is done in each turn, and this process's share of it, if any.

        Everywhere equally many turns. Shards can do nothing alone, and share all of it.
        """
        together = 1 if self.sharded else self.size
        for at in range(0, len(work), together):
            turn = work[at : at + together]
            own = 0 if self.sharded else self.rank
            yield turn, turn[own] if own < len(turn) else None

    def gathered(self, found: list[T]) -> list[T]:
        """What all processes found in their shares of `turns`."""
        if self.size == 1 or self.sharded:
            return found
        every: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(every, found)
        return [one for part in every for one in part]

    def flag(self, stop: StopFlag) -> StopFlag:
        """A stop that is asked of one process, as one that all of them heed at the same boundary."""
        return stop if self.size == 1 else _SharedStop(stop, self)


class _SharedStop(StopFlag):
    """`check` is a question to all processes, so that all must ask it equally often.

    It waits for the answer, one number: a stop that broke a generated text off must be heard before it is scored.
    """

    def __init__(self, own: StopFlag, world: Processes) -> None:
        super().__init__()
        self._own = own
        self._world = world

    def set(self) -> None:
        self._own.set()

    def __bool__(self) -> bool:
        # Within a turn copies are on their own; shards are not.
        return self._world.any(bool(self._own)) if self._world.sharded else bool(self._own)

    def check(self) -> None:
        if self._world.any(bool(self._own)):
            raise Stopped("stopped on request")


class _OwnStop(StopFlag):
    """A shared flag as this process alone sees it."""

    def __init__(self, shared: StopFlag) -> None:
        super().__init__()
        self._shared = shared

    def set(self) -> None:
        self._shared.set()

    def __bool__(self) -> bool:
        return bool(self._shared)


ALONE = Processes()
