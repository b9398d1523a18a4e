"""What a run ran on: threads, device, versions. `prepare` makes CPU arithmetic repeatable."""

import ctypes
import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from transformers.utils.logging import disable_progress_bar

from core.errors import OutOfMemory
from core.report.schema import Environment
from core.spec.job import JobSpec

# glibc's names for what mallopt sets.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_PACKAGES = ("lethe", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "rouge-score")


def available_threads() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(threads: int, device: torch.device | None = None) -> torch.device:
    """Set the thread count and deterministic algorithms; returns the device to run on, `device` where one is given."""
    # The library's own bars would run through ours, and through the JSON lines of whoever merges the two streams.
    disable_progress_bar()
    torch.set_num_threads(threads)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # CUDA has no deterministic form of some operations; there the promise is repeatable data and schedule, not bits.
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    # Determinism would otherwise fill every new tensor with NaN first, a write over all memory that a step touches;
    # nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_freed_memory()
    return device


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: else every large tensor of every step is mapped, faulted in and unmapped anew."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


@contextmanager
def memory_for(spec: JobSpec) -> Iterator[None]:
    """Raises OutOfMemory, naming what of the spec to lower, where the block runs out of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # On a CPU torch has no class of its own for this.
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            raise OutOfMemory(spec.training.micro_batch_tokens, spec.evaluation.batch_tokens) from None
        raise


class Memory:
    """What this process holds of its device: on CUDA what torch has allocated there, else resident memory. In bytes."""

    def __init__(self, device: torch.device) -> None:
        """To be made before the model is read: `idle` is what the process held until then."""
        self.device = device
        self.idle = self._peak()

    def told(self) -> dict[str, int]:
        """The most that was held so far, and what of that was held before the model was read."""
        return {"peak": self._peak(), "idle": self.idle}

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """Whatever could change a result by changing: our own version, the libraries', and CUDA's where it is used."""
    found = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    found.setdefault("lethe", "a checkout that is not installed")
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def describe(device: torch.device, processes: int = 1) -> Environment:
    """The environment as a report carries it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        device=f"{device.type}: {name}",
        threads=torch.get_num_threads(),
        processes=processes,
        memory_bytes=_memory(),
        versions=versions(),
        network="hub access off by environment" if offline else "not restricted",
    )


def _memory() -> int:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0
