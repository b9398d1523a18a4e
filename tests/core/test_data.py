"""Where records come from: files, uploads by id, TOFU's splits; what is wrong is said with its place."""

import json
from pathlib import Path

import pytest

from core.data import SOURCES, Inputs
from core.errors import DataError, SpecError
from core.spec.records import Record
from core.spec.sources import SOURCES as SPEC_SOURCES
from core.spec.sources import JsonLines, Tofu, Upload
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
    with pytest.raises(DataError, match="holds no TOFU files"):
        read(Tofu(path=str(tmp_path / "none"), split="forget01"), Inputs())
