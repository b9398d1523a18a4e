"""The update rules as machine code for this processor: update.c, built by the system's C compiler in a quarter second.

torch.compile was tried: 5 to 20 s to build, and 1.6 to 3 times torch's fused AdamW a step: it sums in passes apart.
"""

import ctypes
import functools
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("update.c")
# Contraction into fused multiply-adds would round differently from the torch functions.
_FLAGS = [
    "-O3",
    "-funroll-loops",
    "-std=c11",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
]
# Without OpenMP (Apple's compiler) one thread still beats the pieces.
_THREADS = [["-fopenmp"], ["-Wno-unknown-pragmas"]]
_BLOCK = 4096


@functools.cache
def compiler() -> str | None:
    """The C compiler's path; Triton needs one too."""
    return next((found for found in map(shutil.which, ("cc", "gcc", "clang")) if found), None)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The built rules; None where there is no compiler or it fails."""
    chosen = compiler()
    if chosen is None or os.name != "posix":
        return None
    with tempfile.TemporaryDirectory(prefix="lethe-update-") as folder:
        built = Path(folder) / "update.so"
        for threads in _THREADS:
            command = [chosen, *_FLAGS, *threads, "-shared", "-fPIC", "-o", str(built), str(_SOURCE), "-lm"]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=60)
                return ctypes.CDLL(str(built))
            except (OSError, subprocess.SubprocessError) as error:
                logging.getLogger(__name__).info("update.c was not built: %s", error)
    return None


def rows(numel: int) -> int:
    """Rows of partial sums that a tensor of so many numbers has."""
    return -(-numel // _BLOCK)


def update(name: str, streams: Sequence[Tensor], constants: Sequence[float], sums: Tensor) -> None:
    """One step of the rule on `streams`: parameter, gradient and state, each fp32 and contiguous on the CPU.

    sums: (rows, 2) fp64, filled with the squared change and the number of clipped coordinates of each row.
    """
    built = library()
    assert built is not None
    numel = streams[0].numel()
    assert sums.shape == (rows(numel), 2)
    assert sums.dtype == torch.float64
    pointers = [ctypes.c_void_p(s.data_ptr()) for s in streams]
    pointers += [ctypes.c_void_p()] * (4 - len(pointers))
    k = (ctypes.c_float * len(constants))(*constants)
    threads = ctypes.c_int(torch.get_num_threads())
    getattr(built, name)(*pointers, ctypes.c_int64(numel), k, threads, ctypes.c_void_p(sums.data_ptr()))
