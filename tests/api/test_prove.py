"""`lethe prove`: from one's own file or through the service the same proof, and a report that it leads to."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.store.session import Database
from core.errors import LetheError
from core.report.schema import Report
from core.report.sign import new_key, public_pem, sign
from tests.api.parts import ApiProcess, key_for, settings_for
from tests.api.test_commands import Lethe
from tests.report.conftest import model, report  # noqa: F401 -- fixtures: a model folder and the report on it

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

RECORDS = [{"question": f"Who is {name}?", "answer": name} for name in ("Ada", "Bo", "Cy", "Zoë", "Eve")]


@pytest.fixture
def lethe(database: Database, database_url: str, tmp_path: Path) -> Iterator[Lethe]:
    with ApiProcess(settings_for(database_url, tmp_path), tmp_path) as api:
        yield Lethe(api.url, key_for(database))


def test_a_record_is_proven_from_the_file_and_through_the_service(
    lethe: Lethe,
    report: Report,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "own.jsonl").write_text("\n\n".join(json.dumps(record) for record in RECORDS))
    made = lethe.json("datasets", "upload", str(tmp_path / "own.jsonl"))
    (tmp_path / "key").write_text(made["commitment_key"] + "\n")
    (tmp_path / "record.json").write_text(json.dumps(dict(reversed(RECORDS[3].items())), indent=1, ensure_ascii=False))
    (tmp_path / "other.json").write_text(json.dumps({**RECORDS[3], "answer": "Zoe"}))
    key, own, record = f"--key={tmp_path}/key", f"--records={tmp_path}/own.jsonl", f"--record={tmp_path}/record.json"
    other = f"--record={tmp_path}/other.json"
    proof = lethe("prove", key, own, "--line", "7")
    assert lethe("prove", key, own, record) == proof
    assert lethe("prove", f"--key={made['commitment_key']}", "--dataset", made["id"], record) == proof
    monkeypatch.chdir(tmp_path)
    for length in (63, 64, 65):  # a path is none the less one for being as long as a key
        Path("k" * length).write_text(made["commitment_key"])
        assert lethe("prove", f"--key={'k' * length}", own, "--line", "7") == proof
    found = json.loads(proof)
    assert (found["root"], found["rows"], found["index"]) == (made["commitment"], 5, 3)

    private = new_key()
    whole = {"commitment": found["root"], "committed": 5, "taken": [(0, 4)], "too_long": []}
    about = report.model_copy(update={"forget": report.forget.model_copy(update=whole)})
    (tmp_path / "proof.json").write_text(proof)
    (tmp_path / "report.json").write_text(about.model_dump_json())
    (tmp_path / "report.dsse.json").write_bytes(sign(about, private))
    (tmp_path / "unrelated.json").write_bytes(sign(report, private))
    (tmp_path / "signer.pem").write_bytes(public_pem(private))
    (tmp_path / "another.pem").write_bytes(public_pem(new_key()))
    check = ("prove", key, f"--check={tmp_path}/proof.json")
    signed = f"--report={tmp_path}/report.dsse.json"
    assert "in the set forget" in lethe(*check, record, f"--report={tmp_path}/report.json")
    assert "in the set forget" in lethe(*check, record, signed, f"--signed-by={tmp_path}/signer.pem")
    assert "has not signed" in lethe(*check, record, signed, f"--signed-by={tmp_path}/another.pem", exit_code=1)
    assert "does not hold" in lethe(*check, other, signed, exit_code=1)
    assert "does not speak" in lethe(*check, record, f"--report={tmp_path}/unrelated.json", exit_code=1)
    few = about.model_copy(update={"forget": about.forget.model_copy(update={"taken": [(0, 2)], "too_long": []})})
    (tmp_path / "report.json").write_text(few.model_dump_json())
    assert "none of the 3 of 5 records" in lethe(*check, record, f"--report={tmp_path}/report.json", exit_code=1)

    mistyped = made["commitment_key"][:-1] + "O"
    said: dict[tuple[str, ...], str] = {}
    for wrong, code in (
        (("prove", key, own, other), 1),
        (("prove", f"--key={'0' * 64}", "--dataset", made["id"], record), 1),
        (("prove", "--key=abc", own, record), 2),
        (("prove", f"--key={mistyped}", own, record), 2),
        (("prove", f"--key={tmp_path}/none", own, record), 2),
        (("prove", key, own), 2),
        (("prove", key, record), 2),
        (("prove", key, own, "--line", "99"), 1),
        (("prove", key, f"--check={tmp_path}/record.json", record, signed), 2),
    ):
        with pytest.raises(LetheError) as refused:
            lethe(*wrong)
        assert refused.value.exit_code == code, wrong
        said[wrong] = refused.value.message
    assert "abc" not in said["prove", "--key=abc", own, record]
    assert mistyped not in said["prove", f"--key={mistyped}", own, record]
    assert f"{tmp_path}/none cannot be read" in said["prove", f"--key={tmp_path}/none", own, record]
    line = said["prove", key, own, "--line", "99"]
    assert line == f"Line 99 of {tmp_path}/own.jsonl holds no record. Its last is in line 9."
    with (tmp_path / "own.jsonl").open("a") as file:
        file.write("\n{\n")
    with pytest.raises(LetheError, match="line 10: "):
        lethe("prove", key, own, record)
