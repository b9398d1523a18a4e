"""Memory of training against the size of the weights: `python -m benchmarks.memory [--json] [--steps N]`, on the CPU.

NPO with low-rank adapters must hold one copy of the weights; NPO of all weights, for comparison, also their gradients
and AdamW's two averages. A 110M-parameter random-init Llama in fp32, each case in a process of its own.
"""

import argparse
import json
import multiprocessing
import resource
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.rows import Size, llama, read_sets
from core.data.feed import Feed
from core.environment import prepare
from core.events import StopFlag
from core.forward import choose_attention
from core.reference import Reference, observe
from core.spec.job import parse
from core.train import Trainer
from core.tuning import prepare as prepare_model

SIZE = Size(hidden=768, intermediate=2048, layers=12, heads=12, vocab=32000, tied=True)
CASES: dict[str, dict[str, Any]] = {
    "npo_lora": {"adapter": "lora"},
    "npo_lora_recomputed": {"adapter": "lora", "gradient_checkpointing": True},
    "npo_full": {},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of lines")
    options = parser.parse_args()
    lines = []
    for case in options.cases:
        # Not forked: a child would count its parent's memory as its own.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            lines.append(pool.apply(measure, (case, options.steps, options.batch, options.threads)))
        if not options.json:
            print(*(f"{key}={value}" for key, value in lines[-1].items()), flush=True)
    if options.json:
        print(json.dumps(lines))


def measure(case: str, steps: int, batch: int, threads: int) -> dict[str, Any]:
    """Megabytes that the process came to hold beyond its libraries and data, and how many times the weights that is."""
    prepare(threads)
    sets = read_sets(None, SIZE.vocab)
    training = {"steps": steps, "batch_size": batch, "micro_batch_tokens": 256, **CASES[case]}
    spec = parse(
        {
            "model": "model",
            "data": {name: {"source": "jsonl", "path": name} for name in sets},
            "method": {"name": "npo", "retain": "nll"},
            "optimizer": {"name": "adamw", "lr": 1e-5},
            "training": training,
        }
    )
    if CASES[case].get("adapter"):
        import peft  # noqa: F401
    before = _peak()
    model = llama(SIZE)
    choose_attention(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    loaded = _peak() - before
    trainer = Trainer(spec, prepare_model(model, spec), sets, Reference(), steps)
    fill_reference(trainer)
    losses = [trainer.one_step(StopFlag())["loss"] for _ in range(steps)]
    peak = _peak() - before
    figures = {"weights_mb": weights, "loaded_mb": loaded, "peak_mb": peak, "ratio": peak / weights}
    return {"case": case, **{name: round(value, 2) for name, value in figures.items()}, "finite": _finite(losses)}


def fill_reference(trainer: Trainer) -> None:
    """Compute what the trainer needs of the model as it is now."""
    feed: Feed = trainer.feed
    rows = {name: feed.rows_ever(name, trainer.steps) for name in trainer.names}
    needs = {name: trainer.objective.needs[name] for name in trainer.names}
    observe(trainer.reference, needs, trainer.model, trainer.sets, rows, None, 2048, StopFlag())


def _finite(losses: Sequence[float]) -> bool:
    return bool(torch.isfinite(torch.tensor(losses)).all())


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
