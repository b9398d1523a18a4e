"""Commitments: a Merkle tree over the records of a data set whose leaves are keyed, so that nobody can guess a record.

The root says nothing without the key; with key, record and a path anyone can check that the record is among those the
root stands for. The tree has the shape of RFC 6962, section 2.1. A leaf is HMAC-SHA256(key, 0x00 || record), a node
SHA-256(0x01 || left || right).
"""

import hashlib
import hmac
import json
from collections.abc import Iterable
from typing import Any, Final

from pydantic import Field

from core.report.schema import Part, Sha256

LEAF: Final = 32  # bytes


class Proof(Part):
    """A way from one leaf up to the root: the hashes beside it, from the leaves upwards."""

    root: Sha256
    rows: int = Field(ge=1, description="records of the set")
    index: int = Field(ge=0, description="place of the record in the set, from 0")
    path: list[Sha256] = Field(max_length=64)


class Tree:
    """A tree that grows by one leaf at a time and holds no more than a hash for each of its levels."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self.rows = 0
        self._peaks: list[bytes] = []  # roots of the full trees that the leaves make up, the largest first
        for leaf in leaves:
            self.add(leaf)

    def add(self, leaf: bytes) -> None:
        """Put a leaf at the right end."""
        node, full = leaf, self.rows
        while full & 1:
            node = _node(self._peaks.pop(), node)
            full >>= 1
        self._peaks.append(node)
        self.rows += 1

    def root(self) -> bytes:
        """The root. Raises ValueError for a tree without leaves."""
        if not self._peaks:
            raise ValueError("a tree without leaves has no root")
        *lefts, node = self._peaks
        for left in reversed(lefts):
            node = _node(left, node)
        return node


def canonical(record: Any) -> bytes:
    """One decoded JSON value as the bytes that a leaf is made of: sorted keys, no spaces, UTF-8.

    Raises RecursionError for deep nests.
    """
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")  # Fields that nobody reads may hold what is no text.


def leaf(key: bytes, record: bytes) -> bytes:
    """The leaf of a record, which `canonical` made."""
    return hmac.digest(key, b"\0" + record, "sha256")


def prove(leaves: bytes, index: int) -> Proof:
    """The proof for the leaf at this place among `leaves`, which stand one after the other."""
    level, place, path = leaves, index, []
    while len(level) > LEAF:
        at = (place ^ 1) * LEAF
        if beside := level[at : at + LEAF]:
            path.append(beside.hex())
        above = bytearray()
        for start in range(0, len(level), 2 * LEAF):
            pair = level[start : start + 2 * LEAF]
            # The odd one out moves up as it is.
            above += hashlib.sha256(b"\1" + pair).digest() if len(pair) == 2 * LEAF else pair
        level, place = bytes(above), place >> 1
    return Proof(root=level.hex(), rows=len(leaves) // LEAF, index=index, path=path)


def find(leaves: bytes, wanted: bytes) -> int | None:
    """The first place of a leaf among `leaves`; None where it is not among them."""
    start = -1
    while (start := leaves.find(wanted, start + 1)) >= 0:
        if start % LEAF == 0:
            return start // LEAF
    return None


def holds(proof: Proof, leaf: bytes) -> bool:
    """Whether the path leads from this leaf to the root (RFC 9162, section 2.1.3.2)."""
    place, last, node = proof.index, proof.rows - 1, leaf
    if place > last:
        return False
    for beside in map(bytes.fromhex, proof.path):
        if last == 0:
            return False
        if place & 1 or place == last:
            node = _node(beside, node)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            node = _node(node, beside)
        place, last = place >> 1, last >> 1
    return last == 0 and hmac.compare_digest(node, bytes.fromhex(proof.root))


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
