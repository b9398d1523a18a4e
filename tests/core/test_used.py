"""A report tells which records of an upload a run used, so that a proof of one record finds out what became of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from core.data import Inputs
from core.data.sets import read_forget
from core.evaluation.whole import evaluate
from core.parallel.peers import Member
from core.report import merkle
from core.report.commitments import in_report
from core.report.schema import NO_SERVICE, Report
from core.run import run
from core.spec.job import parse
from core.spec.records import record_from
from tests import models, tiny
from tests.core.recording import QUICK
from tests.models import Reciter

UPLOAD = "ds_00000000"
KEY = bytes(32)
LONG = {"text": "She casts church bells, and mends them where they were cast. " * 6}
UNFIT = {"question": "Who is she?", "answer": "and " * 200}
PLAIN = QUICK | {"plots": False}


def committed(records: Sequence[Any]) -> list[merkle.Proof]:
    """Of each record the proof that it is in the upload."""
    leaves = b"".join(merkle.leaf(KEY, merkle.canonical(record)) for record in records)
    return [merkle.prove(leaves, place) for place in range(len(records))]


class Asked:
    """A request whose forget set is an upload, and how a service would have it carried out."""

    def __init__(self, reciter: Reciter, folder: Path, records: list[dict[str, Any]], **data: Any) -> None:
        self.proofs, self.folder = committed(records), folder
        self.inputs = Inputs(datasets={UPLOAD: models.write_lines(folder / "upload.jsonl", records)})
        upload = {"source": "upload", "dataset": UPLOAD, "rows": data.pop("rows", None)}
        wanted = reciter.spec(training={"steps": 1, "batch_size": 2}, evaluation=PLAIN)
        given = {"forget": upload, "retain": wanted["data"]["retain"], "max_length": 100} | data
        self.spec = parse(wanted | {"data": {name: value for name, value in given.items() if value is not None}})
        self.commitments = {"forget": self.proofs[0].root}

    def report(self) -> Report:
        out = self.folder / "out"
        made = run(self.spec, self.inputs, out, emit=tiny.silent, stop=tiny.STOP, commitments=self.commitments)
        return signed(made.report, len(self.proofs))

    def proven(self, report: Report, name: str = "forget") -> list[int]:
        return [place for place, proof in enumerate(self.proofs) if said(report, proof, self.folder)[0] == name]


def signed(report: Report, rows: int) -> Report:
    """As the worker hands it out."""
    told = {"forget": report.forget.model_copy(update={"committed": rows})}
    if report.spec["data"]["self_retain"]:
        told["retain"] = report.retain.model_copy(update={"committed": rows})
    return report.model_copy(update=told)


def said(report: Report, proof: merkle.Proof, folder: Path) -> tuple[str | None, str]:
    (folder / "told.json").write_text(report.model_dump_json())
    return in_report(proof, folder / "told.json")


@pytest.fixture
def records() -> list[dict[str, Any]]:
    rows = models.people(2)[:10]
    assert len(rows) == 10
    return rows


def test_of_a_share_that_was_drawn_only_the_drawn_are_proven(
    unlearnt: Reciter, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    asked = Asked(unlearnt, tmp_path, records, forget_ratio=0.5)
    report = asked.report()
    forgotten = read_forget(asked.spec.data, asked.inputs)[0]
    drawn = [place for place, record in enumerate(records) if record_from(record) in forgotten]
    assert drawn not in ([0, 1, 2, 3, 4], list(range(10)))
    assert asked.proven(report) == drawn
    left = next(place for place in range(10) if place not in drawn)
    assert "none of the 5 of 10 records" in said(report, asked.proofs[left], tmp_path)[1]


def test_what_the_draw_left_is_proven_of_the_retain_set(
    unlearnt: Reciter, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    asked = Asked(unlearnt, tmp_path, records, forget_ratio=0.3, self_retain=True, retain=None)
    report = asked.report()
    forgotten, kept = asked.proven(report), asked.proven(report, "retain")
    assert len(forgotten) == 3
    assert sorted(forgotten + kept) == list(range(10))


def test_a_record_that_did_not_fit_is_not_proven_and_those_behind_it_are(
    unlearnt: Reciter, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    records[2] = UNFIT
    asked = Asked(unlearnt, tmp_path, records)
    report = asked.report()
    assert asked.proven(report) == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert "did not fit" in said(report, asked.proofs[2], tmp_path)[1]


def test_the_pieces_of_a_long_text_count_as_one_record(
    unlearnt: Reciter, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    records[1] = LONG
    asked = Asked(unlearnt, tmp_path, records, rows=4)
    report = asked.report()
    assert report.forget.rows > 4, "the text was divided"
    assert asked.proven(report) == [0, 1, 2, 3]


def test_a_draw_a_record_that_did_not_fit_and_a_long_text_together(
    unlearnt: Reciter, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    whole = Asked(unlearnt, tmp_path, records, forget_ratio=0.5, rows=8)
    drawn = read_forget(whole.spec.data, whole.inputs)[0].places
    records[drawn[0]], records[drawn[1]] = UNFIT, LONG
    asked = Asked(unlearnt, tmp_path, records, forget_ratio=0.5, rows=8)
    report = asked.report()
    assert report.forget.too_long == [drawn[0]]
    assert asked.proven(report) == list(drawn[1:])


def test_each_of_a_shared_run_tells_of_its_own_upload(
    unlearnt: Reciter, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    records[4] = UNFIT
    alone = []
    for part in ("one", "two"):
        (tmp_path / part).mkdir()
        own = records[:3] if part == "one" else records[3:]
        alone.append(Asked(unlearnt, tmp_path / part, own, forget_ratio=0.7))
    names = ("ds_00000001", "ds_00000002")
    members = []
    for name, asked in zip(names, alone, strict=True):
        spec = asked.spec.model_dump(mode="json") | {"batch": True}
        spec["data"]["forget"]["dataset"] = name
        members.append(Member(f"job_{name}", parse(spec), asked.commitments))
    inputs = Inputs(datasets={n: asked.inputs.datasets[UPLOAD] for n, asked in zip(names, alone, strict=True)})
    run(members[0].spec, inputs, tmp_path / "out", emit=tiny.silent, stop=tiny.STOP, members=members)
    for member, asked in zip(members, alone, strict=True):
        file = tmp_path / "out" / "members" / member.job / "report.json"
        report = signed(Report.model_validate_json(file.read_bytes()), len(asked.proofs))
        drawn = read_forget(asked.spec.data, asked.inputs)[0].places
        used = [place for place in drawn if asked is alone[0] or place != 1]
        assert asked.proven(report) == used


def test_a_holdout_set_tells_which_records_it_lost(
    unlearnt: Reciter, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    holdout = [*models.people(2, first=4)[:4], records[0], *models.people(1, first=6)[:2]]
    file = models.write_lines(tmp_path / "holdout.jsonl", holdout)
    asked = Asked(unlearnt, tmp_path, records, holdout={"source": "jsonl", "path": str(file)})
    lost = len(models.people(2, first=4)[:4])
    report = evaluate(asked.spec, asked.inputs, tmp_path / "out", emit=tiny.silent, stop=tiny.STOP)
    assert report.sets["holdout"].taken == [(0, lost - 1), (lost + 1, len(holdout) - 1)]


def test_no_report_is_believed_about_a_tree_of_another_size(
    unlearnt: Reciter, tmp_path: Path, records: list[dict[str, Any]]
) -> None:
    asked = Asked(unlearnt, tmp_path, records, rows=5)
    report = asked.report()
    # The path of the record at place 8 of 10 is also that of place 2 of 4, which was used.
    altered = asked.proofs[8].model_copy(update={"rows": 4, "index": 2})
    assert merkle.holds(altered, merkle.leaf(KEY, merkle.canonical(records[8])))
    name, reason = said(report, altered, tmp_path)
    assert (name, "altered" in reason) == (None, True)
    unsaid = report.model_copy(update={"forget": report.forget.model_copy(update={"committed": NO_SERVICE})})
    name, reason = said(unsaid, asked.proofs[0], tmp_path)
    assert (name, "cannot be told" in reason) == (None, True)
