"""Which files of a folder or of a hub repository hold a split, told from their names alone.

The names are those that data sets are published under: `config/split-00000-of-00004.parquet` and its relatives.
"""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import DataError
from core.spec.base import nearest

# Alternatives, the first that is there counts; each is one or more (folder, split), all of which belong to it.
Place = tuple[str, str]
Places = tuple[tuple[Place, ...], ...]

ENDINGS = ("jsonl", "json", "parquet", "csv")
_SHOWN = 40
_ENDING = rf"\.(?P<ending>{'|'.join(ENDINGS)})(\.gz)?"
_PART = r"([-.](?P<index>\d{5})-of-(?P<of>\d{5}))?(/(?P<number>\d+))?"
_ANY = re.compile(rf"(?P<split>.+?){_PART}{_ENDING}")


@dataclass(frozen=True)
class Shard:
    """A file of a split, by its path below the top. `present` is false for one that its fellows' names tell of."""

    name: str
    present: bool = True


def shards(names: Sequence[str], places: Places) -> list[Shard]:
    """The split's files, in their order.

    Raises DataError where there is none, where a part is missing altogether, or where it is not clear which are meant;
    its `param` is the field that is at fault.
    """
    for alternative in places:
        found = [_of_place(names, place) for place in alternative]
        if any(found):
            for place, files in zip(alternative, found, strict=True):
                if not files:
                    raise DataError(f"there is no '{_shown(place)}', which belongs to this config", param="config")
            return [file for files in found for file in files]
    raise _not_found(names, places)


def listing(top: Path, folders: Iterable[str]) -> list[str]:
    """What lies at the top, and at any depth in these folders below it; a folder's name ends in `/`.

    Hidden files are no data. Raises OSError for a top that is no folder, or cannot be read.
    """
    found = [entry.name + "/" * entry.is_dir() for entry in os.scandir(top)]
    for folder in sorted(set(folders) - {""}):
        for at, below, files in os.walk(top / folder):
            inner = Path(at).relative_to(top)
            found += [f"{(inner / name).as_posix()}/" for name in below] + [(inner / name).as_posix() for name in files]
    return [name for name in dict.fromkeys(found) if not any(part.startswith(".") for part in name.split("/"))]


def _of_place(names: Sequence[str], place: Place) -> list[Shard]:
    folder, split = place
    pattern = re.compile(rf"{re.escape(_below(folder))}((?P<set>[A-Za-z0-9]+)-)?{re.escape(split)}{_PART}{_ENDING}")
    matches = [match for name in sorted(names) if (match := pattern.fullmatch(name))]
    # `c4-train` is the split `train` where no file is named so without the set's name before it.
    matches = [m for m in matches if m["set"] is None] or matches
    kinds: dict[tuple[str | None, ...], list[re.Match[str]]] = {}
    for match in matches:
        kinds.setdefault((match["set"], match["ending"], match["of"]), []).append(match)
    if len(kinds) > 1:
        some = " and ".join(sorted(kind[0][0] for kind in kinds.values())[:2])
        raise DataError(f"the split '{split}' is there more than once: {some}", param="split")
    parts = next(iter(kinds.values()), [])
    return _complete(parts) if parts and parts[0]["of"] else [Shard(part[0]) for part in parts]


def _complete(parts: Sequence[re.Match[str]]) -> list[Shard]:
    first = parts[0]
    head, tail = first[0][: first.start("index")], first[0][first.end("index") :]
    there = {part[0] for part in parts}
    wanted = [f"{head}{i:05d}{tail}" for i in range(int(first["of"]))]
    return [Shard(name, name in there) for name in wanted]


def _not_found(names: Sequence[str], places: Places) -> DataError:
    wanted = [place for alternative in places for place in alternative]
    splits = [_splits(names, folder) for folder, _ in wanted]
    for (_, split), known in zip(wanted, splits, strict=True):
        if known:
            return DataError(f"there is no split '{split}'.{_nearest(split, known)}", param="split")
    folders = {name.rpartition("/")[0] for name in names if name.endswith("/") or _ANY.fullmatch(name)} - {""}
    if folders and wanted[0][0]:
        return DataError(f"there is no folder '{wanted[0][0]}'.{_nearest(wanted[0][0], folders)}", param="config")
    endings = ", ".join(f".{ending}" for ending in ENDINGS)
    return DataError(f"there are no data files ({endings}, also with .gz), for example {_shown(wanted[0])}.*")


def _nearest(name: str, known: set[str]) -> str:
    # A folder may hold any number of files; a message names a screenful.
    return nearest(name, difflib.get_close_matches(name, sorted(known), n=_SHOWN, cutoff=0.0))


def _splits(names: Sequence[str], folder: str) -> set[str]:
    top = _below(folder)
    inside = (_ANY.fullmatch(name.removeprefix(top)) for name in names if name.startswith(top))
    return {match["split"] for match in inside if match and "/" not in match["split"]}


def _below(folder: str) -> str:
    return f"{folder}/" if folder else ""


def _shown(place: Place) -> str:
    return "/".join(part for part in place if part)
