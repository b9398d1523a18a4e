"""The tree has the shape that RFC 6962 gives it; every record proves itself, and nothing else does."""

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.report import merkle
from core.report.merkle import Proof, Tree

KEY = bytes(range(32))
LEAVES = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=70)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def tree_head(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word for word, on leaves that are hashed already."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + tree_head(leaves[:k]) + tree_head(leaves[k:])).digest()


def audit_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m < k:
        return [*audit_path(m, leaves[:k]), tree_head(leaves[k:])]
    return [*audit_path(m - k, leaves[k:]), tree_head(leaves[:k])]


def proofs(leaves: list[bytes]) -> list[Proof]:
    return [merkle.prove(b"".join(leaves), index) for index in range(len(leaves))]


@given(LEAVES)
def test_roots_and_paths_are_those_of_rfc_6962(leaves: list[bytes]) -> None:
    root = tree_head(leaves)
    assert Tree(leaves).root() == root
    for index, proof in enumerate(proofs(leaves)):
        assert (proof.root, proof.rows, proof.index) == (root.hex(), len(leaves), index)
        assert [bytes.fromhex(step) for step in proof.path] == audit_path(index, leaves)


@pytest.mark.parametrize("rows", range(1, 34))
def test_every_record_proves_itself_and_no_other(rows: int) -> None:
    records = [merkle.canonical({"question": f"Who is {i}?", "answer": str(i)}) for i in range(rows + 1)]
    *leaves, stranger = [merkle.leaf(KEY, record) for record in records]
    for index, proof in enumerate(proofs(leaves)):
        assert [merkle.holds(proof, leaf) for leaf in leaves] == [i == index for i in range(rows)]
        assert not merkle.holds(proof, stranger)
    assert [merkle.find(b"".join(leaves), leaf) for leaf in (*leaves, stranger)] == [*range(rows), None]


@given(LEAVES, st.data())
def test_any_changed_byte_is_seen(leaves: list[bytes], data: st.DataObject) -> None:
    record = data.draw(st.binary(min_size=1, max_size=20))
    index = data.draw(st.integers(0, len(leaves) - 1))
    leaves[index] = merkle.leaf(KEY, record)
    proof = proofs(leaves)[index]
    assert merkle.holds(proof, leaves[index])

    def flipped(content: bytes) -> bytes:
        place = data.draw(st.integers(0, len(content) - 1))
        other = content[place] ^ data.draw(st.integers(1, 255))
        return content[:place] + bytes([other]) + content[place + 1 :]

    assert not merkle.holds(proof, merkle.leaf(flipped(KEY), record))
    assert not merkle.holds(proof, merkle.leaf(KEY, flipped(record)))
    assert not merkle.holds(proof.model_copy(update={"root": flipped(bytes.fromhex(proof.root)).hex()}), leaves[index])
    for step in range(len(proof.path)):
        path = [*proof.path]
        path[step] = flipped(bytes.fromhex(path[step])).hex()
        assert not merkle.holds(proof.model_copy(update={"path": path}), leaves[index])
    for path in (proof.path[:-1], [*proof.path, "0" * 64]):
        assert path == proof.path or not merkle.holds(proof.model_copy(update={"path": path}), leaves[index])
    assert not merkle.holds(proof.model_copy(update={"index": proof.rows}), leaves[index])


@given(VALUES)
def test_a_record_is_the_same_however_it_is_written(value: Any) -> None:
    record = {"question": "Q", "answer": "A", "more": value}
    backwards = dict(reversed(record.items()))
    for text in (json.dumps(record), json.dumps(backwards, indent=2, ensure_ascii=False)):
        assert merkle.canonical(json.loads(text)) == merkle.canonical(record)
    assert json.loads(merkle.canonical(record).decode("utf-8", "surrogatepass")) == record


def test_what_a_leaf_is() -> None:
    record = merkle.canonical({"b": "Zoë", "a": [1, 2.5, None]})
    assert record == '{"a":[1,2.5,null],"b":"Zoë"}'.encode()
    assert merkle.leaf(KEY, record) == hmac.new(KEY, b"\0" + record, hashlib.sha256).digest()
    assert merkle.canonical({"unread": "\ud800"}) == b'{"unread":"\xed\xa0\x80"}'


def test_leaves_are_found_only_where_one_begins() -> None:
    first, second = bytes(range(32)), bytes(range(32, 64))
    across = (first + second)[5:37]
    assert merkle.find(first + second, across) is None
    assert merkle.find(first + second + across, across) == 2


def test_a_tree_without_leaves_has_no_root() -> None:
    with pytest.raises(ValueError, match="no root"):
        Tree().root()
