"""An error that nobody thought of says its type, its place and what the system said; never what a library said."""

import errno

import pytest

from core.parallel.peers import internal


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Ada Quill lives in Bergen"), ""),
        (OSError(errno.ENOSPC, "No space left on device", "/data/Ada Quill"), ": No space left on device"),
        (RuntimeError("Ada Quill: I/O error: No space left on device (os error 28)"), ": No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/Ada Quill"), ": Permission denied"),
    ],
)
def test_only_the_systems_own_words_are_repeated(error: Exception, said: str) -> None:
    try:
        raise error
    except Exception as raised:
        told = internal(raised)
    assert told["retryable"]
    assert told["message"].startswith(f"{type(error).__name__} at test_internal_errors.py:")
    assert told["message"].endswith(said)
    assert "Ada" not in told["message"]
