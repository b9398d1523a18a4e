"""What a reference costs: `python -m benchmarks.kl [--data FOLDER] [--json]`, steps of ascent with kl against nll.

The reference's hidden states were computed before training, so that a step with kl runs no second model: at most 1.25
times a step with nll. A 25M-parameter random-init Llama, one step of each in turn; ratios are of one round.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.memory import fill_reference
from benchmarks.rows import SIZES, Sets, llama, read_sets
from core.environment import prepare
from core.events import StopFlag
from core.forward import choose_attention
from core.reference import Reference
from core.spec.job import parse
from core.train import Trainer

WARM = 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kl", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with TOFU's published files; absent: shipped rows")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a line")
    options = parser.parse_args()
    prepare(options.threads)
    result = measure(read_sets(options.data, SIZES["25m"].vocab), options.rounds)
    print(json.dumps(result) if options.json else " ".join(f"{name}={value}" for name, value in result.items()))


def measure(sets: Sets, rounds: int) -> dict[str, Any]:
    """Median seconds of a step with each retain term, and the median and quartiles of their ratio."""
    trainers = {term: _trainer(sets, term, rounds + WARM) for term in ("nll", "kl")}
    taken: dict[str, list[float]] = {term: [] for term in trainers}
    for _ in range(rounds + WARM):
        for term, trainer in trainers.items():
            began = time.perf_counter()
            trainer.one_step(StopFlag())
            taken[term].append(time.perf_counter() - began)
    nll, kl = (taken[term][WARM:] for term in ("nll", "kl"))
    low, ratio, high = statistics.quantiles([b / a for a, b in zip(nll, kl, strict=True)], n=4)
    figures = {"nll_s": statistics.median(nll), "kl_s": statistics.median(kl)}
    figures |= {"ratio": ratio, "ratio_low": low, "ratio_high": high}
    return {name: round(value, 4) for name, value in figures.items()}


def _trainer(sets: Sets, retain: str, steps: int) -> Trainer:
    model = llama(SIZES["25m"])
    choose_attention(model)
    spec = parse(
        {
            "model": "model",
            "data": {name: {"source": "jsonl", "path": name} for name in sets},
            "method": {"name": "ascent", "retain": retain},
            "training": {"steps": steps, "batch_size": 4},
        }
    )
    trainer = Trainer(spec, model, sets, Reference(), steps)
    fill_reference(trainer)
    return trainer


if __name__ == "__main__":
    main()
