"""Every error that a user of Lethe can meet, each with a stable code and, for the engine's process, an exit code.

LetheError
├── SpecError            the request is malformed: field, value, what is allowed          exit 2
├── DataError            a record or data set cannot be used: file, line, reason          exit 2
├── ModelError           a model folder cannot be used                                    exit 2
├── Stopped              asked to stop; in training a checkpoint was left first           exit 3
├── Diverged             the loss became NaN or infinite; names the step                  exit 4
├── OutOfMemory          the run does not fit into memory; names what to lower            exit 4
├── ProcessLost          another process of the same run ended                            exit 70
├── CheckpointError      a checkpoint is damaged or belongs to another spec or data       exit 5
└── LeaseLost            whoever started this engine no longer holds the job              exit 6

Exit 0 means the run finished and the report was written, whatever its verdict; 70 is an error of Lethe's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

EXIT_OK = 0
EXIT_INTERNAL = 70


class LetheError(Exception):
    """Base of the tree. `code` is stable and machine-readable; `param` names the offending field, if there is one."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = EXIT_INTERNAL
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        # Where several requests share a run: the job at whose own data the fault lies.
        self.of: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The error as a job carries it: `{code, message, param, retryable}`."""
        return {"code": self.code, "message": self.message, "param": self.param, "retryable": self.retryable}


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a request: the field's dotted path, the value found there, and a sentence saying why."""

    param: str
    value: Any
    message: str


class SpecError(LetheError):
    """The request is malformed. `problems` holds every fault found, so that all can be mended at once."""

    code = "invalid_spec"
    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        lines = [f"{p.param}: {p.message}" if p.param else p.message for p in problems]
        super().__init__("\n".join(lines), param=problems[0].param if problems else None)
        self.problems = list(problems)


class DataError(LetheError):
    """A record or a data set cannot be used."""

    code = "invalid_data"
    exit_code = 2


class ModelError(LetheError):
    """A model folder cannot be used: files missing, weights not in safetensors, architecture unknown."""

    code = "invalid_model"
    exit_code = 2


class Stopped(LetheError):
    """The run was asked to stop. Where training had begun, a complete checkpoint was left first."""

    code = "stopped"
    exit_code = 3
    retryable = True


class Diverged(LetheError):
    """The loss became NaN or infinite."""

    code = "diverged"
    exit_code = 4

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(
            f"The loss or its gradient was {loss} at optimizer step {step}; training cannot go on. "
            "Lower optimizer.lr, or choose a bounded forget term such as npo.",
            param="optimizer.lr",
        )
        self.step = step


class OutOfMemory(LetheError):
    """The run does not fit into the device's or the machine's memory; the same run would not fit the next time."""

    code = "out_of_memory"
    exit_code = 4

    def __init__(self, micro_batch_tokens: int, batch_tokens: int) -> None:
        super().__init__(
            f"Out of memory. If in training, lower training.micro_batch_tokens (now {micro_batch_tokens}); "
            f"if in scoring, evaluation.batch_tokens (now {batch_tokens}). Neither changes a result.",
            param="training.micro_batch_tokens",
        )


class ProcessLost(LetheError):
    """Another process of the same run ended; `said` is its own error, where it told one."""

    code = "process_lost"
    exit_code = EXIT_INTERNAL
    retryable = True

    def __init__(self, rank: int, size: int, code: int, said: str | None = None) -> None:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        super().__init__(f"Process {rank + 1} of {size} {how}{f': {said}' if said else ''}.")


class CheckpointError(LetheError):
    """A checkpoint is damaged, or belongs to another spec, model or data, or to other versions."""

    code = "checkpoint_mismatch"
    exit_code = 5


class LeaseLost(LetheError):
    """The job is no longer held by whoever is acting on it: another attempt took over, or the lease ran out."""

    code = "lease_lost"
    exit_code = 6
    retryable = True
