"""One optimizer step on a GPU, Lethe against `plain`: `python -m benchmarks.gpu_step [--size 1.3b] [--rows 16]`.

Real tokens a second, the share of the GPU's peak matrix rate that goes into the step's own products, peak memory.
"""

import argparse
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import CASES, CURVATURE_EVERY
from benchmarks.floor import products
from benchmarks.pipelines import PIPELINES, Setup
from benchmarks.rows import SIZES, read_sets, step_rows

# Weights, and whether matrix products are in bf16 whatever the weights are.
FORMATS = {"bf16": (torch.bfloat16, False), "autocast": (torch.float32, True), "fp32": (torch.float32, False)}


def main() -> None:
    """Measure each pipeline after the other on the same rows, and print a JSON list."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_step", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with TOFU's published files; absent: shipped rows")
    parser.add_argument("--case", choices=CASES, default="graddiff_1x4")
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=["lethe_sophia", "lethe_adamw", "plain"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="1.3b")
    parser.add_argument("--dtype", choices=FORMATS, default="autocast")
    parser.add_argument("--rows", type=int, default=16, help="rows of each set in a step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peak-tflops", type=float, default=790.0, help="the GPU's matrix rate")
    parser.add_argument("--out", type=Path, help="write the JSON list to this file as well")
    options = parser.parse_args()
    dtype, autocast = FORMATS[options.dtype]
    setup = Setup(
        options.case,
        read_sets(options.data),
        SIZES[options.size],
        batch=options.rows,
        device=options.device,
        dtype=dtype,
        autocast=autocast,
    )
    lines = [measure(name, setup, options.rounds, options.peak_tflops) for name in options.pipelines]
    device = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    described = {"device": device, "size": options.size, "dtype": options.dtype}
    lines = [described | line for line in lines]
    print(json.dumps(lines, indent=1))
    if options.out:
        options.out.write_text(json.dumps(lines, indent=1) + "\n")


def measure(name: str, setup: Setup, rounds: int, peak_tflops: float) -> dict[str, Any]:
    """One pipeline's figures; the step's seconds are a median, curvature refreshes shared out over their steps."""
    gc.collect()
    on_gpu = setup.device == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    pipeline = PIPELINES[name](setup)

    def timed(step: int) -> float:
        began = time.perf_counter()
        pipeline.step(step)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for step in (0, 1, 2):
        timed(step)
    ordinary = [step for step in range(3, 50) if step % CURVATURE_EVERY][:rounds]
    seconds = [timed(step) for step in ordinary]
    refreshed = [timed(CURVATURE_EVERY * i) for i in (1, 2, 3)]
    median = statistics.median(seconds)
    step_s = median + max(0.0, statistics.median(refreshed) - median) / CURVATURE_EVERY
    sets = [step_rows(setup.sets, step, setup.batch, setup.seed) for step in ordinary]
    tokens = statistics.mean(sum(len(r.ids) for rows in one.values() for r in rows) for one in sets)
    flop = statistics.mean(sum(p.flop for p in products(setup.size, CASES[setup.case], one)) for one in sets)
    return {
        "case": setup.case,
        "pipeline": name,
        "step_s": round(step_s, 4),
        "ordinary_step_s": round(median, 4),
        "spread": [round(min(seconds), 4), round(max(seconds), 4)],
        "rows": 2 * setup.batch,
        "tokens": round(tokens),
        "tokens_per_s": round(tokens / step_s),
        "gflop": round(flop / 1e9, 1),
        "share_of_peak": round(flop / step_s / (peak_tflops * 1e12), 4),
        "peak_mb": round(torch.cuda.max_memory_allocated() / 2**20) if on_gpu else None,
    }


if __name__ == "__main__":
    main()
