"""Receiving a data set: JSON lines, checked while they pass by on their way into a sealed file.

Nothing is written in plaintext and no more than a line and a chunk is ever held. An upload that fails, or that nobody
finishes, leaves nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, cast

from api.errors import BadLines, TooLarge
from api.store import sealed
from api.store.blobs import Blobs
from core.errors import DataError
from core.spec.records import Record, record_from_line

LISTED = 100  # bad lines that are named; the rest are counted


class Limits(Protocol):
    """How much of it may come; `Settings` says so."""

    upload_max_bytes: int
    upload_max_rows: int
    upload_max_row: int


@dataclass(frozen=True)
class Received:
    """A stored upload, as `datasets.register` wants it."""

    rows: int
    size: int
    blob: str
    key: bytes
    commitment: str
    warnings: list[str]


def receive(blobs: Blobs, limits: Limits, next_chunk: Callable[[], bytes]) -> Received:
    """Store what `next_chunk` gives until it gives nothing, sealed under a key of its own.

    Raises BadLines, TooLarge, DataError for an upload without records, and whatever `next_chunk` raises.
    """
    key = sealed.new_key()
    lines = Lines(limits, next_chunk, key)
    blob = blobs.put(cast(BinaryIO, lines), key)
    return Received(lines.rows, lines.size, blob.digest, key, lines.commitment, lines.warnings())


class Lines:
    """A stream of JSON lines that checks them while it is read; reading its end raises if any was bad."""

    def __init__(self, limits: Limits, next_chunk: Callable[[], bytes], key: bytes) -> None:
        self.rows = 0
        self.size = 0
        self._limits = limits
        self._next_chunk = next_chunk
        self._code = sealed.committer(key)
        self._left = memoryview(b"")
        self._line = bytearray()
        self._length = 0  # of the current line; what is over the limit is counted but not kept
        self._number = 1
        self._bad: list[dict[str, Any]] = []
        self._bad_count = 0
        self._comparable = 0
        self._questions = 0

    @property
    def commitment(self) -> str:
        """`sealed.commitment` of all that was read."""
        return self._code.hexdigest()

    def read(self, size: int) -> bytes:
        """At most `size` bytes, and none only at the end."""
        if not self._left:
            chunk = self._next_chunk()
            if chunk:
                self._take(chunk)
            else:
                self._finish()
            self._left = memoryview(chunk)
        piece, self._left = self._left[:size], self._left[size:]
        return bytes(piece)

    def warnings(self) -> list[str]:
        """What is allowed, but may not be what was meant."""
        if self._questions and not self._comparable:
            return ["No record has both paraphrased_answer and perturbed_answer: the truth ratio cannot be measured."]
        return []

    def _take(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size > self._limits.upload_max_bytes:
            raise TooLarge(f"The upload is larger than the {self._limits.upload_max_bytes} bytes allowed.")
        self._code.update(chunk)
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._extend(chunk[start:end])
            self._end_line()
            start = end + 1
        self._extend(chunk[start:])

    def _extend(self, piece: bytes) -> None:
        self._length += len(piece)
        if self._length <= self._limits.upload_max_row:
            self._line += piece

    def _end_line(self) -> None:
        if self._length > self._limits.upload_max_row:
            self._note(DataError(f"longer than the {self._limits.upload_max_row} bytes allowed"))
        elif self._line.strip():
            self._check(bytes(self._line))
        self._line.clear()
        self._length = 0
        self._number += 1

    def _check(self, line: bytes) -> None:
        self.rows += 1
        if self.rows > self._limits.upload_max_rows:
            raise TooLarge(f"The upload holds more than the {self._limits.upload_max_rows} records allowed.")
        try:
            self._count(record_from_line(line))
        except DataError as error:
            self._note(error)

    def _count(self, record: Record) -> None:
        self._questions += not record.raw
        self._comparable += bool(record.paraphrased_answer and record.perturbed_answers)

    def _note(self, error: DataError) -> None:
        self._bad_count += 1
        if len(self._bad) < LISTED:
            self._bad.append({"line": self._number, "param": error.param, "message": error.message})

    def _finish(self) -> None:
        if self._length:
            self._end_line()
        if self._bad:
            raise BadLines(self._bad, self._bad_count)
        if not self.rows:
            raise DataError("The upload holds no records.")
