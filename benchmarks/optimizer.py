"""What an optimizer's step costs: `python -m benchmarks.optimizer [--json] [--rounds N]`, on the CPU or one GPU.

25.2M fp32 parameters shaped as a Llama's (hidden 512, 8 layers, intermediate 1,024, vocabulary 8,192), the step alone.
Every round times each of them once, so that noise falls on all; ratios are of one round, against torch's fused AdamW.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from core.optim.first_order import adamw, sgd
from core.optim.sophia import Sophia, soul

HIDDEN, LAYERS, INTERMEDIATE, VOCABULARY = 512, 8, 1024, 8192
LR = 1e-5
YARDSTICK = "torch AdamW, fused"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizer", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(torch.device("cuda" if torch.cuda.is_available() else "cpu"), options.rounds)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['weights'] / 1e6:.1f}M weights on {result['device']}, {result['rounds']} rounds")
    for row in result["cases"]:
        spread = f"{row['low_ms']:.1f}-{row['high_ms']:.1f}"
        print(f"{row['case']:<34} {row['median_ms']:7.2f} ms ({spread:>13})   {row['ratio']:5.2f} x fused")


def measure(device: torch.device, rounds: int) -> dict[str, Any]:
    """The result document: medians, quartiles and the median of each round's ratio; milliseconds."""
    steps = {name: build(_weights(device)) for name, build in CASES.items()} | {"7 streams, copied": _floor(device)}
    for step in steps.values():
        for _ in range(2):
            step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            taken[name].append(_milliseconds(step, device))
    return {
        "weights": sum(p.numel() for p in _weights(torch.device("meta"))),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": rounds,
        "cases": [_row(name, times, taken[YARDSTICK]) for name, times in taken.items()],
    }


def _row(name: str, times: list[float], yardstick: list[float]) -> dict[str, Any]:
    low, _, high = statistics.quantiles(times, n=4)
    ratio = statistics.median(one / other for one, other in zip(times, yardstick, strict=True))
    figures = {"median_ms": statistics.median(times), "low_ms": low, "high_ms": high, "ratio": ratio}
    return {"case": name} | {key: round(value, 3) for key, value in figures.items()}


def _milliseconds(step: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        step()
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended))
    began_at = time.perf_counter()
    step()
    return (time.perf_counter() - began_at) * 1e3


def _weights(device: torch.device) -> list[Parameter]:
    layer = [(HIDDEN, HIDDEN)] * 4 + [(INTERMEDIATE, HIDDEN)] * 2 + [(HIDDEN, INTERMEDIATE)] + [(HIDDEN,)] * 2
    shapes = [(VOCABULARY, HIDDEN), *(layer * LAYERS), (HIDDEN,)]
    weights = [Parameter(torch.randn(shape, device=device) / 50) for shape in shapes]
    for p in weights:
        p.grad = torch.randn_like(p) / 1000
    return weights


class _Plain:
    """Sophia as SOUL's code walks it: whole parameters, one operation after the other."""

    def __init__(self, weights: Iterable[Parameter]) -> None:
        self.state = [(p, torch.zeros_like(p), torch.rand_like(p)) for p in weights]

    @torch.no_grad()
    def __call__(self) -> None:
        for p, m, h in self.state:
            assert p.grad is not None
            p.mul_(1 - LR * 0.1)
            m.mul_(0.96).add_(p.grad, alpha=0.04)
            ratio = (m.abs() / (0.05 * h + 1e-15)).clamp(None, 1)
            p.addcmul_(m.sign(), ratio, value=-LR)


def _floor(device: torch.device) -> Callable[[], object]:
    """As many bytes as an update must move (read four numbers a weight, write three), moved by copying."""
    numbers = sum(p.numel() for p in _weights(torch.device("meta"))) * 7 // 2
    source, target = (torch.ones(numbers, device=device) for _ in range(2))

    def copy() -> Tensor:
        return target.copy_(source)

    return copy


def _torch(**how: bool) -> Callable[[list[Parameter]], Callable[[], Any]]:
    return lambda weights: torch.optim.AdamW(weights, LR, **how).step


CASES: dict[str, Callable[[list[Parameter]], Callable[[], Any]]] = {
    YARDSTICK: _torch(fused=True),
    "torch AdamW, foreach": _torch(foreach=True),
    "torch AdamW, for-loop": _torch(foreach=False),
    "plain Sophia, by parameter": _Plain,
    "sophia, built": lambda weights: Sophia(weights, lr=LR, gamma=0.05, build=True).step,
    "sophia, pieces": lambda weights: Sophia(weights, lr=LR, gamma=0.05, build=False).step,
    "soul, built": lambda weights: soul(weights, lr=LR, build=True).step,
    "adamw, built": lambda weights: adamw(weights, lr=LR, build=True).step,
    "adamw, pieces": lambda weights: adamw(weights, lr=LR, build=False).step,
    "sgd with momentum, built": lambda weights: sgd(weights, lr=LR, momentum=0.9, build=True).step,
}

if __name__ == "__main__":
    main()
