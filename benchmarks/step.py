"""An optimizer step of Lethe against two other ways of making it: `python -m benchmarks.step [--data FOLDER] [--json]`.

A 25M-parameter random-init Llama, fp32, on TOFU's rows or shipped ones; every pipeline in a process of its own, one
step of each in turn on the same rows, so that whatever else the machine does falls on all alike. `--check`: that the
three make the same update.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import CASES, CURVATURE_EVERY, careful, plain
from benchmarks.pipelines import PEAK, PIPELINES, Lethe, Setup, baseline, serve
from benchmarks.rows import SIZES, read_sets
from benchmarks.turns import in_turns

SECOND_ORDER = ("plain", "lethe_sophia")
CHECK_RATES = {"sgd": 0.1, "adamw": 1e-5}
CHECK_STEPS = 8


def main() -> None:
    """Measure or check, and print; a check that fails exits 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with TOFU's published files; absent: shipped rows")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=list(PIPELINES))
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each pipeline")
    parser.add_argument("--curvature-rounds", type=int, default=3, help="timed steps that refresh the curvature")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    parser.add_argument("--out", type=Path, help="write the JSON list to this file as well")
    parser.add_argument("--check", action="store_true", help="compare updates instead of times")
    options = parser.parse_args()
    size = SIZES["25m"]
    base = Setup("", read_sets(options.data, size.vocab), size, threads=options.threads, seed=options.seed)
    setups = [replace(base, case=name) for name in options.cases]
    if options.check:
        agreed = [checked(setup) for setup in setups]
        sys.exit(0 if all(agreed) else 1)
    lines = []
    for setup in setups:
        lines.append(measure(setup, options.pipelines, options.rounds, options.curvature_rounds))
        if not options.json:
            print(*(f"{k}={v}" for k, v in lines[-1].items() if k != "spread"), flush=True)
    if options.json:
        print(json.dumps(lines))
    if options.out:
        options.out.write_text(json.dumps(lines, indent=1) + "\n")


def measure(setup: Setup, names: Sequence[str], rounds: int, curvature_rounds: int) -> dict[str, Any]:
    """One line of the table; seconds are medians over the rounds, curvature refreshes shared out over their steps."""
    with in_turns(serve, names, setup) as connections:

        def one(name: str, step: int) -> tuple[float, float]:
            connections[name].send(step)
            seconds, losses = connections[name].recv()
            return seconds, losses[0]

        # The first step of all refreshes the curvature; both kinds of step are warm after two.
        for step in (0, 1):
            for name in names:
                one(name, step)
        ordinary = [step for step in range(2, 100) if step % CURVATURE_EVERY][:rounds]
        times: dict[str, list[float]] = {name: [] for name in names}
        gflop = []
        for step in ordinary:
            for name in names:
                seconds, first = one(name, step)
                times[name].append(seconds)
                if name == "floor":
                    gflop.append(first)
        refreshed: dict[str, list[float]] = {name: [] for name in names if name in SECOND_ORDER}
        for i in range(curvature_rounds):
            for name in refreshed:
                refreshed[name].append(one(name, CURVATURE_EVERY * (i + 1))[0])
        memory = {}
        for name, connection in connections.items():
            connection.send(PEAK)
            memory[name] = connection.recv()
    return _line(setup.case, times, refreshed, memory, gflop)


def _line(
    case: str,
    times: Mapping[str, Sequence[float]],
    refreshed: Mapping[str, Sequence[float]],
    memory: Mapping[str, tuple[float, float]],
    gflop: Sequence[float],
) -> dict[str, Any]:
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    extra = {
        name: max(0.0, statistics.median(seconds) - middle[name]) / CURVATURE_EVERY
        for name, seconds in refreshed.items()
        if seconds
    }
    step = {name: middle[name] + extra.get(name, 0.0) for name in middle}
    get: Callable[[str], float | None] = step.get
    fields = {
        "plain_s": get("plain"),
        "careful_s": get("careful"),
        "lethe_s": get("lethe_adamw"),
        "ratio_plain": _ratio(get("plain"), get("lethe_sophia")),
        "ratio_careful": _ratio(get("careful"), get("lethe_adamw")),
        "floor_s": get("floor"),
        "peak_mb": memory["lethe_sophia"][0] if "lethe_sophia" in memory else None,
        "lethe_sophia_s": get("lethe_sophia"),
        "bf16_s": get("lethe_bf16"),
        "ratio_bf16": _ratio(get("lethe_adamw"), get("lethe_bf16")),
        "ratio_floor": _ratio(get("lethe_adamw"), get("floor")),
        "gflop": statistics.median(gflop) if gflop else None,
        "curvature_share": _ratio(extra.get("lethe_sophia"), middle.get("lethe_sophia")),
        "sophia_update_s": get("sophia_update"),
        "adamw_update_s": get("adamw_update"),
        "ratio_updates": _ratio(get("sophia_update"), get("adamw_update")),
    }
    for name in ("plain", "careful", "lethe_sophia", "lethe_adamw"):
        if name in memory:
            fields[f"{name}_peak_mb"], fields[f"{name}_peak_over_imports_mb"] = memory[name]
    rounded = {k: None if v is None else round(v, 4 if k.endswith("_s") else 2) for k, v in fields.items()}
    spread = {name: [round(t, 4) for t in _tenths(seconds)] for name, seconds in times.items()}
    return {"case": case, **rounded, "spread": spread}


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _tenths(seconds: Sequence[float]) -> tuple[float, float]:
    """Tenth and ninetieth percentile."""
    if len(seconds) < 2:
        return seconds[0], seconds[0]
    cuts = statistics.quantiles(seconds, n=10, method="inclusive")
    return cuts[0], cuts[-1]


def checked(setup: Setup) -> bool:
    """Print how far the updates of the three pipelines differ; whether they agree."""
    agree = True
    for optimizer, lr in CHECK_RATES.items():
        found = differences(replace(setup, lr=lr), optimizer, CHECK_STEPS)
        for pair, (loss, weights) in found.items():
            held = loss <= 1e-5 and weights <= 1e-2
            agree &= held
            verdict = "agree" if held else "DIFFER"
            gaps = f"losses {loss:.1e}  updates {weights:.1e}"
            print(f"{setup.case:<13} {optimizer:<6} {pair:<15} {gaps}  {verdict}", flush=True)
    return agree


def differences(setup: Setup, optimizer: str, steps: int) -> dict[str, tuple[float, float]]:
    """How far Lethe's update is from each baseline's after so many steps of the same rows.

    By pair: the largest difference of losses relative to their size, and `||dW_a - dW_b|| / ||dW||`.
    """
    made: dict[str, Any] = {
        "plain": baseline(plain, setup, optimizer),
        "careful": baseline(careful, setup, optimizer),
        "lethe": Lethe(setup, optimizer),
    }
    before = [p.detach().clone() for p in made["lethe"].model.parameters()]
    losses = {name: torch.tensor([p.step(step) for step in range(steps)]) for name, p in made.items()}
    moved = {name: _moved(p.model, before) for name, p in made.items()}
    ours = losses["lethe"].double()
    return {
        f"lethe-{name}": (
            float(((losses[name].double() - ours).abs().sum(1) / ours.abs().sum(1)).max()),
            float((moved[name] - moved["lethe"]).norm() / moved["lethe"].norm()),
        )
        for name in ("plain", "careful")
    }


def _moved(model: torch.nn.Module, before: Sequence[torch.Tensor]) -> torch.Tensor:
    """dW, all weights one behind the other."""
    return torch.cat([(p.detach() - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])


if __name__ == "__main__":
    main()
