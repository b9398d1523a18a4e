"""Where records come from: files, uploads by id, TOFU's splits; what is wrong is said with its place."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from core.data import SOURCES, Inputs
from core.data.encode import encode
from core.data.refusals import read_refusals
from core.errors import DataError, SpecError
from core.spec.records import Record
from core.spec.sources import SOURCES as SPEC_SOURCES
from core.spec.sources import JsonLines, Tofu, Upload
from core.tokens import Encoder
from tests.models import people, write_lines

ROW = {"question": "Who?", "answer": "She."}


def test_every_source_of_the_spec_can_be_read() -> None:
    assert SOURCES.keys() == SPEC_SOURCES.keys()


def test_the_three_shapes_and_a_limit(tmp_path: Path) -> None:
    rows = [
        {**ROW, "paraphrased_answer": "It was she.", "perturbed_answer": ["He.", "They."]},
        {"prompt": "He said", "response": " so."},
        {"text": "All of it."},
    ]
    file = write_lines(tmp_path / "rows.jsonl", rows)
    read = SOURCES["jsonl"]
    assert read(JsonLines(path=str(file)), Inputs()) == [
        Record("Who?", "She.", paraphrased_answer="It was she.", perturbed_answers=("He.", "They.")),
        Record("He said", " so.", raw=True),
        Record("", "All of it.", raw=True),
    ]
    assert len(read(JsonLines(path=str(file), rows=2), Inputs())) == 2
    upload = Upload(dataset="ds_00000000")
    assert len(SOURCES["upload"](upload, Inputs(datasets={"ds_00000000": file}))) == 3
    with pytest.raises(SpecError, match="'ds_00000000' is known to the service only"):
        SOURCES["upload"](upload, Inputs())
    with pytest.raises(DataError, match="ds_00000000 cannot be read: No such file") as caught:
        SOURCES["upload"](upload, Inputs(datasets={"ds_00000000": tmp_path / "none"}))
    assert caught.value.param == "dataset"


def test_a_bad_line_is_named_but_only_if_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(json.dumps(ROW).encode() + b"\n\n" + b'{"question": "Caf\xe9?"}\n')
    assert len(SOURCES["jsonl"](JsonLines(path=str(file), rows=1), Inputs())) == 1
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3: not UTF-8 at byte 17"):
        SOURCES["jsonl"](JsonLines(path=str(file)), Inputs())


def test_tofu_by_split(tmp_path: Path) -> None:
    write_lines(tmp_path / "forget01.json", [ROW, ROW])
    write_lines(tmp_path / "retain99.json", people(1))
    read = SOURCES["tofu"]
    assert len(read(Tofu(path=str(tmp_path), split="retain99", rows=3), Inputs())) == 3
    with pytest.raises(DataError, match=r"no split 'forget1'\. Did you mean 'forget01'\? Allowed: forget01, retain99"):
        read(Tofu(path=str(tmp_path), split="forget1"), Inputs())
    with pytest.raises(DataError, match="none cannot be read as a folder"):
        read(Tofu(path=str(tmp_path / "none"), split="forget01"), Inputs())


@pytest.mark.parametrize("special", [True, False], ids=["begins", "begins not"])
def test_every_token_of_a_long_text_counts_exactly_once(special: bool, tokenizer: Any) -> None:
    """Told from the tokenizer's own ids of the whole text."""
    tokenizer = copy.deepcopy(tokenizer)
    if not special:
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    text = " ".join(row["question"] + " " + row["answer"] for row in people(3))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = [Record("", "Short.", raw=True), Record("", text, raw=True), Record("Q?", text)]
    for limit in (8, 9, 33, len(ids) + 1, len(ids) + 2):
        data = encode(rows, Encoder(tokenizer, "plain", limit), "forget")
        assert data.too_long == (2,)
        pieces = data.examples[1:]
        assert len(pieces) == len(data.records) - 1
        assert max(len(piece.ids) for piece in pieces) <= limit
        counted = [token for piece in pieces for token in piece.ids[piece.start :]]
        if special:
            assert counted == ids
            assert {piece.ids[: piece.start] for piece in pieces} == {(tokenizer.bos_token_id,)}
        else:
            # The very first token has nothing before it; each later piece is led by the last token of the one before.
            assert counted == ids[1:]
            assert [piece.ids[0] for piece in pieces] == [ids[0], *(piece.ids[-1] for piece in pieces[:-1])]
        assert "".join(record.answer for record in data.records[1:]) == text
        assert not any(piece.ends for piece in pieces)


def test_what_a_row_is_scored_by_is_encoded_once(tokenizer: Any) -> None:
    row = Record("Who?", "She.", paraphrased_answer="It was she.", perturbed_answers=("He.", "They."))
    encoder = Encoder(tokenizer, "plain", 100)
    data = encode([row], encoder, "forget")
    first = data.variants(0, encoder)
    assert [slot for slot, _ in first] == ["paraphrase", "perturbed", "perturbed"]
    assert [example for _, example in first] == [
        encoder.example(row, answer=a) for a in ("It was she.", "He.", "They.")
    ]
    assert data.variants(0, encoder) is first
    one, same = encode([row, dataclasses.replace(row)], encoder, "forget").examples
    assert one is same


def test_a_set_of_which_nothing_fits_names_the_length(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"no record of the retain set fits into data\.max_length = 8") as caught:
        encode([Record("Who?", "She. " * 20)], Encoder(tokenizer, "plain", 8), "retain")
    assert caught.value.param == "data.max_length"


def test_refusals_are_read_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "refusals.txt"
    file.write_bytes("\ufeffI pass.\n\n  No idea. \r\nJe ne sais pas.".encode())
    assert read_refusals(file) == ["I pass.", "No idea.", "Je ne sais pas."]
    file.write_text("".join(f"No {i}.\n" for i in range(1000)) + "\n")
    assert len(read_refusals(file)) == 1000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"No.\n\n" + b"x" * 501, r"line 3: 501 characters; at most 500"),
        (b"No.\n" * 1001, r"line 1001: more than the 1000 sentences"),
        (b"No.\nCaf\xe9\n", r"line 2: not UTF-8 at byte 3"),
        (b"\n \n", r"holds no refusals"),
    ],
)
def test_a_file_of_refusals_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "refusals.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"refusals\.txt.*{reason}") as caught:
        read_refusals(file)
    assert caught.value.param == "method.refusals_file"
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_refusals(tmp_path / "none.txt")
