"""TOFU's evaluation by Lethe against two other ways of making it: `python -m benchmarks.evaluate [--data FOLDER]`.

A 25M-parameter Llama that has learnt where answers end, on TOFU's four sets or shipped rows; every way in a process of
its own, a set scored by each in turn, so that whatever else the machine does falls on all alike. `--check`: that the
fp32 ways give the same numbers.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.evaluation_agreement import Agreement, compare
from benchmarks.evaluation_floor import Needed, matmul_rate, needed
from benchmarks.evaluation_model import read_records, trained
from benchmarks.evaluation_ways import WAYS, Scored, Setup, encoded, serve
from benchmarks.rows import SIZES, Size
from benchmarks.turns import in_turns
from core.tokens import Example

# So much faster Lethe must be on all sets together: (the slower way, Lethe's, the least ratio).
REQUIRED = {
    "ratio_plain": ("plain", "lethe", 5.0),
    "ratio_bf16": ("plain", "lethe_bf16", 8.0),
    "ratio_batched": ("batched", "lethe", 1.8),
}
EXACT = ("plain", "batched", "lethe")
RATES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WARM_ROWS = 2

Ask = Callable[[str, str, int | None], Scored]
Turns = Mapping[str, Sequence[Scored]]  # of one set, by way, an entry a round


def main() -> None:
    """Measure or check, and print; a check that fails exits 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with TOFU's published files; absent: shipped rows")
    parser.add_argument("--forget", choices=("forget01", "forget05", "forget10"), default="forget01")
    parser.add_argument("--rows", type=int, default=40, help="the first so many of each set")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3, help="how often each way scores every set")
    parser.add_argument("--steps", type=int, default=300, help="of 8 rows, that the model is trained for")
    parser.add_argument("--home", type=Path, help="keep the trained model here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    parser.add_argument("--out", type=Path, help="write the JSON list to this file as well")
    parser.add_argument("--check", action="store_true", help="compare numbers instead of times")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size, every = SIZES["25m"], read_records(options.data, options.forget)
    sets = {name: records[: options.rows] for name, records in every.items()}
    with tempfile.TemporaryDirectory(prefix="lethe-evaluate-") as temporary:
        home = options.home or Path(temporary)
        model = trained(every, sets, size, home, steps=options.steps, threads=options.threads)
        setup = Setup(model, sets, options.threads)
        if options.check:
            sys.exit(0 if checked(setup) else 1)
        with processes(setup, options.ways) as ask:
            lines = measure(setup, size, options.ways, options.rounds, ask)
    if options.json:
        print(json.dumps(lines))
    else:
        for line in lines:
            print(*(f"{k}={v}" for k, v in line.items() if k != "spread"))
    if options.out:
        options.out.write_text(json.dumps(lines, indent=1) + "\n")


def measure(setup: Setup, size: Size, names: Sequence[str], rounds: int, ask: Ask) -> list[dict[str, Any]]:
    """A line of the table for every set, and one for all of them; seconds are medians over the rounds.

    `ask` has the way of this name score the set of that name, or its first rows.
    """
    rates: dict[str, list[float]] = {kind: [] for kind in RATES}
    turns: dict[str, dict[str, list[Scored]]] = {part: {name: [] for name in names} for part in setup.sets}
    for part in setup.sets:
        for name in names:
            ask(name, part, WARM_ROWS)
    for _ in range(rounds):
        for kind, dtype in RATES.items():
            rates[kind].append(matmul_rate(dtype))
        for part in setup.sets:
            for name in names:
                turns[part][name].append(ask(name, part, None))
    rate = {kind: statistics.median(found) for kind, found in rates.items()}
    floors = _floors(setup, turns)
    lines = [_line(part, turns[part], floors.get(part), size, rate) for part in setup.sets]
    together = {name: [_sum([turns[part][name][i] for part in turns]) for i in range(rounds)] for name in names}
    # What two sets share is counted for each: no way scores two at once.
    whole = sum(floors.values(), Needed(0, 0, 0)) if floors else None
    return [*lines, _held(_line("all", together, whole, size, rate))]


@contextmanager
def processes(setup: Setup, names: Sequence[str]) -> Iterator[Ask]:
    """A process for each way, ready; within the block one scores a set when it is asked to."""
    with in_turns(serve, names, setup) as connections:

        def ask(name: str, part: str, rows: int | None) -> Scored:
            connections[name].send((part, rows))
            scored: Scored = connections[name].recv()
            return scored

        yield ask


def _sum(parts: Sequence[Scored]) -> Scored:
    """Several sets as one."""
    return Scored(
        [row for part in parts for row in part.rows],
        sum(part.teacher_s for part in parts),
        sum(part.generation_s for part in parts),
        [ids for part in parts for ids in part.generated],
        sum(part.ended for part in parts),
    )


def _floors(setup: Setup, turns: Mapping[str, Turns]) -> dict[str, Needed]:
    """What each set needs; that is known where a way tells the ids it generated."""
    sets, encoder = encoded(setup, AutoTokenizer.from_pretrained(setup.model))
    floors = {}
    for part, data in sets.items():
        made = next((found[0].generated for found in turns[part].values() if found[0].generated), None)
        if made is None:
            continue
        answers = [e for row in range(len(data.records)) for _, e in data.variants(row, encoder) if e is not None]
        written = [
            Example((*e.prompt, *ids), e.start, ids[-1] == encoder.tokenizer.eos_token_id)
            for e, ids in zip(data.examples, made, strict=True)
        ]
        floors[part] = needed([*data.examples, *answers, *written])
    return floors


def _line(case: str, turns: Turns, floor: Needed | None, size: Size, rate: Mapping[str, float]) -> dict[str, Any]:
    first = {name: found[0] for name, found in turns.items()}
    rows = len(next(iter(first.values())).rows)
    middle = {name: statistics.median(one.seconds for one in found) for name, found in turns.items()}
    fields: dict[str, float] = {}
    for ratio, (slow, fast, _) in REQUIRED.items():
        if slow in middle and fast in middle:
            fields[ratio] = middle[slow] / middle[fast]
    for name, found in turns.items():
        fields[f"{name}_rows_per_s"] = rows / middle[name]
        fields[f"{name}_s"] = middle[name]
        fields[f"{name}_teacher_s"] = statistics.median(one.teacher_s for one in found)
        fields[f"{name}_generation_s"] = statistics.median(one.generation_s for one in found)
    if floor is not None:
        fields["gflop"] = floor.flop(size) / 1e9
        for kind, found_rate in rate.items():
            fields |= {f"gflop_per_s_{kind}": found_rate, f"floor_{kind}_s": fields["gflop"] / found_rate}
        if "lethe" in middle:
            fields["ratio_floor"] = middle["lethe"] / fields["floor_fp32_s"]
    rounded = {k: round(v, 2) for k, v in fields.items()}
    spread = {name: [round(one.seconds, 2) for one in found] for name, found in turns.items()}
    return {"case": case, "rows": rows, **rounded, **_answered(first), **_differences(first), "spread": spread}


def _answered(first: Mapping[str, Scored]) -> dict[str, float]:
    """How many tokens greedy answers have on average, and what share of them ended by themselves."""
    told = next((one for one in first.values() if one.generated), None)
    if told is None:
        return {}
    mean = statistics.fmean(map(len, told.generated))
    return {"generated_tokens": round(mean, 1), "generated_ended": round(told.ended / len(told.generated), 3)}


def _differences(first: Mapping[str, Scored]) -> dict[str, Any]:
    """How far each way's numbers are from the first one's."""
    (_, reference), *others = first.items()
    found = {name: compare(one.rows, reference.rows) for name, one in others}
    return {f"{name}_{k}": v for name, a in found.items() for k, v in _told(a).items()}


def _told(agreement: Agreement) -> dict[str, Any]:
    return {
        "difference": float(f"{agreement.difference:.1e}"),
        "tokens_differ": agreement.tokens,
        "texts_differ": agreement.texts,
    }


def _held(line: dict[str, Any]) -> dict[str, Any]:
    """The line, with whether Lethe is as much faster as it must be; what was not measured does not hold."""
    holds = all(line.get(ratio, 0.0) >= least for ratio, (_, _, least) in REQUIRED.items())
    return {**line, "holds": holds}


def checked(setup: Setup) -> bool:
    """Print how far the numbers of the fp32 ways differ, set by set; whether they agree."""
    agree = True
    for part, found in differences(setup).items():
        for pair, agreement in found.items():
            agree &= agreement.holds
            verdict = "agree" if agreement.holds else "DIFFER"
            told = f"{agreement.difference:.1e} ({agreement.field})  tokens {agreement.tokens}  texts {agreement.texts}"
            print(f"{part:<13} {pair:<14} {told}  {verdict}", flush=True)
    return agree


def differences(setup: Setup) -> dict[str, dict[str, Agreement]]:
    """By set and pair, how far each fp32 way's rows are from those of `plain`."""
    ways = {name: WAYS[name](setup) for name in EXACT}
    found: dict[str, dict[str, Agreement]] = {}
    for part in setup.sets:
        rows = {name: way.score(part).rows for name, way in ways.items()}
        found[part] = {f"{name}-plain": compare(rows[name], rows["plain"]) for name in EXACT if name != "plain"}
    return found


if __name__ == "__main__":
    main()
