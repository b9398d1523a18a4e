"""What can go wrong between a caller and the store.

LetheError
├── NotFound               no such job, data set, model or key
├── Conflict               the job's status does not allow this
│   ├── NotPassed          the model's own job has not shown that it forgot
│   └── DataDestroyed      the job's data is gone for good
├── OwnRequest             under four eyes nobody approves what they asked for themselves
├── IdempotencyMismatch    the Idempotency-Key was used before, with another body
├── AttemptsExhausted      the job's attempts died until the cap was reached
├── BlobMissing            the artifact store lacks a file that a row refers to
├── BlobDamaged            a file of the artifact store is not what was put there, or the key is not its key
└── InvalidSetting         a setting of the store cannot be used
"""

from core.errors import LetheError


class NotFound(LetheError):
    """Nothing is registered under this id."""

    code = "not_found"


class Conflict(LetheError):
    """The job's status does not allow what was asked, or somebody else changed it first."""

    code = "conflict"


class NotPassed(Conflict):
    """A model is to be put to use whose job has not passed its gates."""

    code = "not_passed"


class DataDestroyed(Conflict):
    """The keys that opened the data were destroyed."""

    code = "data_destroyed"


class OwnRequest(LetheError):
    """The principal who submitted a job is not the one to approve it."""

    code = "forbidden"
    reason = "four_eyes"  # for the audit log


class IdempotencyMismatch(LetheError):
    """The same Idempotency-Key came with two different bodies."""

    code = "idempotency_mismatch"


class AttemptsExhausted(LetheError):
    """Too many attempts ended without an answer: the engine died or its worker's lease ran out."""

    code = "attempts_exhausted"
    retryable = True


class BlobMissing(LetheError):
    """A file is not in the artifact store."""

    code = "artifact_missing"


class BlobDamaged(LetheError):
    """A file of the artifact store was altered, cut short, or sealed under another key."""

    code = "artifact_damaged"


class InvalidSetting(LetheError):
    """A setting cannot be used."""

    code = "invalid_setting"
