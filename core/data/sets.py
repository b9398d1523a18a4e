"""The sets of a request as records: each source is read, and where only a share is to be forgotten, it is drawn."""

from collections.abc import Mapping, Sequence

import numpy as np

from core.data import SOURCES
from core.data.inputs import Inputs
from core.errors import DataError, Problem, SpecError
from core.spec.records import Record
from core.spec.sources import Data, Source


class Taken(list[Record]):
    """The records of a set. `places` are where each stands among those of its source, from 0 and ascending."""

    def __init__(self, records: Sequence[Record], places: Sequence[int] | None = None) -> None:
        """Without places: all that the source gave."""
        super().__init__(records)
        self.places = range(len(records)) if places is None else places


def read_sets(data: Data, inputs: Inputs) -> dict[str, Taken]:
    """`forget`, and every other set that is given. Raises DataError whose `param` is the field at fault."""
    forget, rest = read_forget(data, inputs)
    return with_others(data, inputs, {"forget": forget} | ({"retain": rest} if data.self_retain else {}))


def read_forget(data: Data, inputs: Inputs) -> tuple[Taken, Taken]:
    """What is to be forgotten, and what the draw left of its source, which is something where it shall be retained.

    Raises DataError.
    """
    everything = read_set("forget", data.forget, inputs)
    forget, rest = divided(everything, data.forget_ratio, data.seed)
    if data.self_retain and not rest:
        raise DataError(
            f"data.self_retain: of {len(everything)} records with forget_ratio = {data.forget_ratio} "
            "none is left to retain",
            param="data.self_retain",
        )
    return forget, rest


def with_others(data: Data, inputs: Inputs, sets: Mapping[str, Taken]) -> dict[str, Taken]:
    """These sets and every other one that is given. Raises DataError."""
    others = {name: source for name, source in data.sources().items() if name != "forget"}
    found = {**sets, **{name: Taken(read_set(name, source, inputs)) for name, source in others.items()}}
    if "holdout" in found:
        found["holdout"] = _never_seen(found)
    return found


def _never_seen(sets: Mapping[str, Sequence[Record]]) -> Taken:
    """The holdout records without those that are word for word records of the sets that the model is trained on; it may
    be few of them. Raises DataError."""
    known = {(r.prompt, r.answer) for name in ("forget", "retain") for r in sets.get(name, ())}
    given = sets["holdout"]
    left = [place for place, record in enumerate(given) if (record.prompt, record.answer) not in known]
    if 2 * len(left) < len(given):
        message = (
            f"{len(given) - len(left)} of {len(given)} records are word for word records of the forget or retain set"
        )
        raise DataError(f"data.holdout: {message}; they must be ones that no model here has seen", param="data.holdout")
    return Taken([given[place] for place in left], left)


def divided(records: Sequence[Record], ratio: float, seed: int) -> tuple[Taken, Taken]:
    """The share `ratio` of the records (one at least), drawn by the seed, and the others; both in their old order.

    Among the others no record is left that is word for word one of the drawn: what is forgotten is not kept.
    """
    if ratio == 1:
        return Taken(records), Taken([])
    count = max(1, round(ratio * len(records)))
    order = np.random.default_rng(seed).permutation(len(records))
    drawn = sorted(order[:count].tolist())
    forget = [records[i] for i in drawn]
    known = set(forget)
    rest = [i for i in sorted(order[count:].tolist()) if records[i] not in known]
    return Taken(forget, drawn), Taken([records[i] for i in rest], rest)


def read_set(name: str, source: Source, inputs: Inputs) -> list[Record]:
    """The records of one source. Raises DataError and SpecError whose `param` begins with `data.<name>`."""
    try:
        return SOURCES[source.source](source, inputs)
    except SpecError as error:
        raise SpecError([Problem(f"data.{name}.{p.param}", p.value, p.message) for p in error.problems]) from None
    except DataError as error:
        if error.param not in type(source).model_fields:
            raise DataError(f"data.{name}: {error.message}", param=error.param) from None
        param = f"data.{name}.{error.param}"
        raise DataError(f"{param}: {error.message}", param=param) from None
