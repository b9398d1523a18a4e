"""Several requests in one run: trained once, each measured as if its records had been scored alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from core import checkpoint
from core.data import Inputs
from core.errors import CheckpointError, DataError, SpecError, Stopped
from core.evaluation.rows import read_rows
from core.evaluation.whole import evaluate
from core.parallel.peers import Member
from core.report.schema import Measured, Report
from core.run import run
from core.spec.job import LocalModel, parse
from tests import models, tiny
from tests.core.recording import QUICK, Recorder
from tests.models import Reciter

EVALUATION = QUICK | {"attacks": ["prefix", {"name": "relearn", "steps": 2, "rows": 2}]}
TRAINING = {"steps": 4, "batch_size": 3, "checkpoint_every": 2}
OTHER = {"source": "jsonl", "path": "people.jsonl"}
STRICT = [{"metric": "forget.probability", "at_most": 1e-9}]
EASY = [
    {"metric": "forget.probability", "at_most": 1.0, "at_least": 0.0},
    {"metric": "forget.rouge_l", "at_most": 0.999},
]


def requests(reciter: Reciter, folder: Path, **fields: Any) -> list[Member]:
    """Three requests, of four, three and three rows of whom the reciter knows; the second has a gate that it misses."""
    rows = models.people(2)
    parts = {"job_a": rows[:4], "job_b": rows[4:7], "job_c": rows[7:10]}
    made = []
    for job, part in parts.items():
        own = Reciter(reciter.model, models.write_lines(folder / f"{job}.jsonl", part), reciter.retain)
        gates = STRICT if job == "job_b" else EASY
        spec = own.spec(
            batch=True, reference=job, gates=gates, **{"training": TRAINING, "evaluation": EVALUATION, **fields}
        )
        made.append(Member(job, parse(spec), {"forget": f"{len(made)}" * 64}))
    return made


def together(members: list[Member], out: Path, heard: Recorder, resume: Path | None = None) -> dict[str, Report]:
    # The order in which they are given is not that of the run.
    run(members[-1].spec, Inputs(), out, emit=heard, stop=heard.stop, members=members[::-1], resume=resume)
    files = {member.job: out / "members" / member.job / "report.json" for member in members}
    return {job: Report.model_validate_json(file.read_bytes()) for job, file in files.items()}


def test_each_request_has_its_own_rows_gates_and_report(unlearnt: Reciter, tmp_path: Path) -> None:
    members, heard = requests(unlearnt, tmp_path), Recorder()
    reports = together(members, tmp_path / "out", heard)
    assert len(heard.of("step")) == TRAINING["steps"], "trained once"
    for member, rows in zip(members, (4, 3, 3), strict=True):
        report = reports[member.job]
        assert (report.spec["reference"], report.spec_digest) == (member.job, member.spec.digest())
        assert (report.forget.rows, report.forget.commitment) == (rows, member.commitments["forget"])
        assert (report.training.shared_with, report.training.shared_rows) == (2, 10 - rows)
        told = report.model_dump_json()
        assert not any(other.job in told or other.commitments["forget"] in told for other in members if other != member)
        delivered = member.spec.model_copy(update={"model": LocalModel(path=str(tmp_path / "out" / "model"))})
        alone = evaluate(delivered, Inputs(), tmp_path / member.job, emit=tiny.silent, stop=tiny.STOP)
        assert alone.after.keys() == report.after.keys()
        for name, measured in alone.after.items():
            found = report.after[name]
            assert type(found) is type(measured), name
            if isinstance(measured, Measured):
                assert found.value == pytest.approx(measured.value, rel=1e-6, abs=1e-6), name
                assert found.rows == measured.rows
        kept, about = read_rows(tmp_path / "out" / "members" / member.job / "rows" / "after-forget.parquet")
        assert (len(kept), about["spec_digest"]) == (rows, member.spec.digest())
    assert [reports[m.job].verdict.verdict for m in members] == ["passed", "not_passed", "passed"]
    assert {report.output_model for report in reports.values()} == {reports["job_a"].output_model}
    (done,) = heard.of("done")
    assert [(m["job"], m["verdict"]) for m in done["members"]] == [(j, r.verdict.verdict) for j, r in reports.items()]
    assert [(e["job"], e["when"]) for e in heard.of("scores")] == [
        (m.job, w) for w in ("before", "after") for m in members
    ]


def test_a_stopped_run_goes_on_with_the_same_requests_only(unlearnt: Reciter, tmp_path: Path) -> None:
    members = requests(unlearnt, tmp_path, evaluation=QUICK | {"plots": False})
    whole = together(members, tmp_path / "whole", Recorder())
    heard = Recorder(lambda event: event["event"] == "step" and event["step"] == 3)
    with pytest.raises(Stopped):
        together(members, tmp_path / "out", heard)
    resume = checkpoint.latest(tmp_path / "out" / "checkpoints")
    with pytest.raises(CheckpointError):
        together(members[:2], tmp_path / "fewer", Recorder(), resume)
    again = together(members, tmp_path / "again", Recorder(), resume)
    for job, report in whole.items():
        assert again[job].training.resumed_from == 3
        assert (again[job].output_model, again[job].before) == (report.output_model, report.before)
        assert again[job].after == report.after
        kept, _ = read_rows(tmp_path / "again" / "members" / job / "rows" / "before-forget.parquet")
        assert len(kept) == report.forget.rows


def test_a_fault_in_one_request_says_whose_it_is(unlearnt: Reciter, tmp_path: Path) -> None:
    long = models.people(1)[0] | {"answer": "and " * 300}
    for content in ("no JSON\n", json.dumps(long) + "\n"):
        members = requests(unlearnt, tmp_path)
        (tmp_path / "job_b.jsonl").write_text(content)
        with pytest.raises(DataError) as caught:
            together(members, tmp_path / "out", Recorder())
        assert caught.value.of == "job_b"


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("data.self_retain", {"data": {"forget": OTHER, "forget_ratio": 0.5, "self_retain": True}}),
        ("evaluation.retrained.rows", {"evaluation": {"retrained": {"rows": "elsewhere"}}}),
    ],
)
def test_what_only_one_request_could_have_is_not_shared(unlearnt: Reciter, field: str, fields: dict[str, Any]) -> None:
    parse(unlearnt.spec(**fields))
    with pytest.raises(SpecError) as caught:
        parse(unlearnt.spec(**fields, batch=True))
    assert caught.value.param == field
