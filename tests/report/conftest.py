"""A small model folder, the report on it, and the key that signs it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.report.digest import file_digests, model_digest
from core.report.schema import Absent, DataUsed, Environment, Measured, Report, TrainingDone
from core.report.sign import new_key, public_pem, sign
from core.report.verdict import judge
from core.spec.job import parse

SPEC = {
    "model": {"path": "models/small"},
    "data": {"forget": {"source": "jsonl", "path": "forget.jsonl"}},
    "method": "npo",
    "gates": [{"metric": "forget.probability", "at_most": 0.1}],
    "reference": "CASE-7 é",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "config.json").write_text('{"hidden_size": 16}')
    (folder / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    return folder


@pytest.fixture
def report(model: Path) -> Report:
    return report_on(model)


def report_on(model: Path) -> Report:
    """A report whose output is this folder."""
    spec = parse(SPEC)
    files = file_digests(model)
    before = {"forget.probability": Measured(value=0.97, rows=20, low=0.95, high=0.99)}
    after = {"forget.probability": Measured(value=0.30000000000000004, rows=20, low=1e-05, high=1.0)}
    return Report(
        spec=spec.model_dump(mode="json"),
        spec_digest=spec.digest(),
        seed=spec.seed,
        started_at="2026-01-02T03:04:05Z",
        finished_at="2026-01-02T03:05:05Z",
        input_model="0" * 64,
        output_model=model_digest(files),
        output_files=files,
        forget=DataUsed(rows=20, answer_tokens=400, taken=[(0, 20)], too_long=[3], commitment="1" * 64, committed=21),
        retain=Absent(absent="no retain set was given"),
        beside={},
        before=before,
        after=after,
        training=TrainingDone(
            steps=1,
            planned_steps=1,
            delivered_step=1,
            stopped_early=False,
            resumed_from=Absent(absent="it ran without a break"),
            seconds=1.5,
            seconds_to_first_step=0.5,
            final_loss=-0.0,
            clip_fraction=Absent(absent="adamw does not clip"),
            curve=[{"step": 1, "loss": 2.0}],
            looks=[],
        ),
        verdict=judge(spec.gates, before, after),
        environment=Environment(
            python="3.11", platform="Linux", device="cpu", threads=2, memory_bytes=1, versions={}, network="off"
        ),
        limitations=["Approximate unlearning is not certified removal."],
    )


@pytest.fixture(scope="session")
def key() -> bytes:
    return new_key()


@pytest.fixture(scope="session")
def public(key: bytes) -> bytes:
    return public_pem(key)


@pytest.fixture
def envelope(report: Report, key: bytes) -> bytes:
    return sign(report, key)


@pytest.fixture
def place(tmp_path: Path, report: Report, envelope: bytes, public: bytes) -> Callable[..., dict[str, Path]]:
    """Writes the files that `lethe verify` reads, any of them with other content, and says where they are."""

    def write(**other: Any) -> dict[str, Path]:
        contents = {
            "report.json": report.model_dump_json(indent=2).encode(),
            "report.dsse.json": envelope,
            "signing.pub.pem": public,
        }
        contents |= {name.replace("__", "."): content for name, content in other.items()}
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        return {name: tmp_path / name for name in contents}

    return write
