"""Training from nothing is repeatable and says what it reached; asking a folder gives the answers it learned."""

import hashlib
import json
from pathlib import Path

import pytest

from core import scratch
from core.ask import ask
from core.data.jsonl import read_file
from tests.core.recording import Recorder
from tests.models import Reciter


def test_the_same_seed_gives_the_same_folder(reciter: Reciter, tmp_path: Path) -> None:
    records = read_file(reciter.forget, "forget", None)
    size = scratch.Size(hidden=16, layers=1, heads=2, vocab=400, epochs=2)

    def trained(name: str, seed: int) -> list[str]:
        scratch.train(records, tmp_path / name, size=size, seed=seed, threads=1, emit=Recorder())
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted((tmp_path / name).iterdir())]

    first = trained("first", 0)
    assert trained("again", 0) == first
    assert trained("other", 1) != first


def test_the_reciter_recites(reciter: Reciter) -> None:
    rows = [json.loads(line) for file in (reciter.forget, reciter.retain) for line in file.read_text().splitlines()]
    assert ask(reciter.model, [row["question"] for row in rows]) == [row["answer"] for row in rows]


def test_a_missing_file_is_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        scratch.main([str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "none.jsonl cannot be read: No such file" in capsys.readouterr().err
