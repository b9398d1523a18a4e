"""Which rows each optimizer step sees, and in which forward passes: a function of seed and step alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from core.data.batches import by_length, dealt, rows_of_step
from core.spec.job import JobSpec
from core.tokens import Example

_STREAMS = {"forget": 0, "retain": 1}


@dataclass(frozen=True)
class Portion:
    """Rows of each set for one forward pass, and their places among the set's rows of the step, where a small set may
    have one row twice. `weight` 0: a pass that only keeps step with other processes."""

    rows: Mapping[str, Sequence[int]]
    places: Mapping[str, Sequence[int]]
    weight: float = 1.0


@dataclass(frozen=True)
class Feed:
    """The sets of a run, `rank` and `ranks` of the process that takes its share of each step.

    `beside` names sets whose rows go wherever the same rows of another set go: `{"alternative": "forget"}`.
    """

    spec: JobSpec
    sets: Mapping[str, Sequence[Example]]
    packed: bool
    beside: Mapping[str, str]
    rank: int = 0
    ranks: int = 1

    def rows(self, name: str, step: int) -> list[int]:
        """A step's rows of a set, for all processes together."""
        leader = self.beside.get(name, name)
        return rows_of_step(
            step, len(self.sets[leader]), self.spec.training.batch_size, seed=self.spec.seed, stream=_STREAMS[leader]
        )

    def rows_ever(self, name: str, steps: int) -> set[int]:
        """Every row of a set that a run of so many steps will see."""
        rows = len(self.sets[self.beside.get(name, name)])
        # Each pass over a set takes every row once.
        enough = math.ceil(rows / self.spec.training.batch_size)
        return {row for step in range(min(steps, enough)) for row in self.rows(name, step)}

    def lengths(self, name: str, step: int) -> list[int]:
        """Answer tokens of a step's rows of a set, for all processes together."""
        return [self.sets[name][row].answer_tokens for row in self.rows(name, step)]

    def portions(self, names: Sequence[str], step: int) -> Iterator[Portion]:
        """This process's rows of these sets, mixed by length into as few forward passes as the budget allows.

        Every process gets equally many passes, since some ways of sharing a model need all of them in each.
        """
        of_step = {name: self.rows(name, step) for name in names}
        followers = {name: leader for name, leader in self.beside.items() if name in names}
        items = [(name, place) for name in names if name not in followers for place in range(len(of_step[name]))]

        def length(item: tuple[str, int]) -> int:
            name, place = item
            together = [name, *(follower for follower, leader in followers.items() if leader == name)]
            return sum(len(self.sets[each][of_step[each][place]].ids) for each in together)

        def portion(batch: Sequence[tuple[str, int]], weight: float = 1.0) -> Portion:
            places = {name: [place for n, place in batch if n == followers.get(name, name)] for name in names}
            rows = {name: [of_step[name][place] for place in own] for name, own in places.items()}
            return Portion(rows, places, weight)

        budget = self.spec.training.micro_batch_tokens
        shares = [by_length(share, length, budget, packed=self.packed) for share in dealt(items, length, self.ranks)]
        own = shares[self.rank]
        yield from map(portion, own)
        for _ in range(max(map(len, shares)) - len(own)):
            yield portion([min(items, key=length)], weight=0.0)
