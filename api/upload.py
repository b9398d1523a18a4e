"""Receiving a data set: JSON lines, checked while they pass by on their way into a sealed file.

Nothing is written in plaintext and no more than a line, a chunk and 32 bytes a record is ever held. An upload that
fails, or that nobody finishes, leaves nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, Protocol, cast

from api.errors import BadLines, TooLarge
from api.store import sealed
from api.store.blobs import Blobs
from api.store.vault import Fingerprint, Vault
from core.errors import DataError
from core.report import merkle
from core.spec.records import Record, record_from, row_from_line

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
    leaves: str
    key: bytes
    commitment: str
    fingerprint: str
    warnings: list[str]


def receive(blobs: Blobs, vault: Vault, limits: Limits, next_chunk: Callable[[], bytes]) -> Received:
    """Store what `next_chunk` gives until it gives nothing, sealed under a key of its own.

    Raises BadLines, TooLarge, DataError for an upload without records, and whatever `next_chunk` raises.
    """
    key = sealed.new_key()
    commitment = Commitment(sealed.commitment_key(key), vault.fingerprint())
    lines = Lines(limits, next_chunk, commitment.add)
    blob = blobs.put(cast(BinaryIO, lines), key)
    try:
        # Sealed, though they say nothing without the key: so they are of no use, and found by nobody, once it is gone.
        leaves = blobs.put(BytesIO(commitment.leaves), key)
    except BaseException:
        blobs.delete([blob.digest])
        raise
    return Received(
        rows=lines.rows,
        size=lines.size,
        blob=blob.digest,
        leaves=leaves.digest,
        key=key,
        commitment=commitment.tree.root().hex(),
        fingerprint=commitment.fingerprint.hex(),
        warnings=lines.warnings(),
    )


class Commitment:
    """What binds a set while its records pass by: the tree of the commitment, its leaves, and the fingerprint."""

    def __init__(self, key: bytes, fingerprint: Fingerprint) -> None:
        self.tree = merkle.Tree()
        self.leaves = bytearray()
        self.fingerprint = fingerprint
        self._key = key

    def add(self, row: Any) -> None:
        """Take in one record, decoded. Raises DataError where it is nested too deeply."""
        try:
            record = merkle.canonical(row)
        except RecursionError:
            raise DataError("not JSON: nested too deeply") from None
        leaf = merkle.leaf(self._key, record)
        self.tree.add(leaf)
        self.leaves += leaf
        self.fingerprint.add(record)


class Lines:
    """A stream of JSON lines that checks them while it is read, and hands each good row, decoded, to `take`; reading
    its end raises if any was bad."""

    def __init__(self, limits: Limits, next_chunk: Callable[[], bytes], take: Callable[[Any], None]) -> None:
        self.rows = 0
        self.size = 0
        self._limits = limits
        self._next_chunk = next_chunk
        self._take_row = take
        self._left = memoryview(b"")
        self._line = bytearray()
        self._length = 0  # of the current line; what is over the limit is counted but not kept
        self._number = 1
        self._bad: list[dict[str, Any]] = []
        self._bad_count = 0
        self._comparable = 0
        self._questions = 0

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
            row = row_from_line(line)
            self._count(record_from(row))
            self._take_row(row)
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
