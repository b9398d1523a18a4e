"""Every published data set is read from its own layout, by folder and by hub id, and what is missing is named."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from core.data import SOURCES, Inputs
from core.data.sets import read_sets
from core.errors import DataError, SpecError
from core.spec.job import parse
from core.spec.records import Record
from core.spec.sources import SOURCES as SPEC_SOURCES
from core.spec.sources import Data, Source
from tests.core import hub, published

REVISION = "0123456789abcdef0123456789abcdef01234567"
NOT_OF_THE_HUB = {"hub": None, "revision": None}
SPEC: TypeAdapter[Any] = TypeAdapter(Source)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("published")
    for name, make in published.LAYOUTS.items():
        (top / name).mkdir()
        make(top / name)
    return top


def read(**fields: Any) -> list[Record]:
    source = SPEC.validate_python(fields)
    return SOURCES[source.source](source, Inputs())


# (folder, what is asked for, how many records, the first of them)
CASES: list[tuple[str, dict[str, Any], int, Record]] = [
    ("tofu", {"source": "tofu", "split": "retain99"}, 5, Record("What kept is number 0?", "The kept number 0.")),
    (
        "tofu",
        {"source": "tofu", "split": "forget01_perturbed"},
        3,
        Record(
            "What forgotten is number 0?",
            "The forgotten number 0.",
            paraphrased_question="What forgotten is number 0? Tell.",
            paraphrased_answer="The forgotten number 0. So it is.",
            perturbed_answers=("Another.", "A third."),
        ),
    ),
    (
        "tofu",
        {"source": "tofu", "split": "world_facts_perturbed"},
        1,
        Record("What fact is number 0?", "The fact number 0.", perturbed_answers=("B",)),
    ),
    ("muse", {"source": "muse", "split": "retain1"}, 4, Record("", "A raw retain1 text, the one of number 0.", True)),
    (
        "muse",
        {"source": "muse", "config": "privleak", "split": "holdout"},
        3,
        Record("", "A holdout text, the one of number 0.", True),
    ),
    (
        "muse",
        {"source": "muse", "config": "knowmem", "split": "forget_qa"},
        3,
        Record("What forget_qa is number 0?", "The forget_qa number 0."),
    ),
    (
        "muse",
        {"source": "muse", "config": "verbmem", "split": "forget"},
        2,
        Record("It began and", " it went on.", True),
    ),
    (
        "muse",
        {"source": "muse", "config": "scal", "split": "forget_2"},
        3,
        Record("", "A scal 2 text, the one of number 0.", True),
    ),
    (
        "wmdp_corpora",
        {"source": "wmdp", "config": "bio-retain-corpus"},
        8,
        Record("", "A bio-retain-corpus part 0 text, the one of number 0.", True),
    ),
    (
        "wmdp_archive",
        {"source": "wmdp", "config": "bio-forget-corpus"},
        3,
        Record("", "A bio forget text, the one of number 0.", True),
    ),
    (
        "wmdp_archive",
        {"source": "wmdp", "config": "cyber-forget-corpus"},
        3,
        Record("", "A cyber forget text, the one of number 0.", True),
    ),
    (
        "wmdp",
        {"source": "wmdp", "config": "wmdp-cyber"},
        1,
        Record(
            "Which is the third?\nA. One\nB. Two\nC. Three\nD. Four",
            "C. Three",
            perturbed_answers=("A. One", "B. Two", "D. Four"),
        ),
    ),
    (
        "saferlhf",
        {"source": "pku_saferlhf"},
        9,
        Record("How would Alpaca-7B answer?", "Alpaca-7B says 0, rudely."),
    ),
    (
        "saferlhf",
        {"source": "pku_saferlhf", "config": "alpaca3-8b", "response": "safe"},
        3,
        Record("How would Alpaca3-8B answer?", "Alpaca3-8B says 1, kindly."),
    ),
    (
        "saferlhf",
        {"source": "pku_saferlhf", "config": "alpaca2-7b", "split": "test", "response": "safer"},
        1,
        Record("How would Alpaca2-7B answer?", "Alpaca2-7B says 1, rudely."),
    ),
    (
        "saferlhf",
        {"source": "pku_saferlhf", "config": "alpaca2-7b", "split": "test", "response": "better"},
        1,
        Record("How would Alpaca2-7B answer?", "Alpaca2-7B says 0, rudely."),
    ),
    ("c4", {"source": "text", "config": "en"}, 6, Record("", "A c4 0 text, the one of number 0.", True)),
    (
        "c4",
        {"source": "text", "config": "en", "split": "validation"},
        3,
        Record("", "A c4 validation text, the one of number 0.", True),
    ),
    (
        "c4",
        {"source": "text", "config": "en", "column": "url"},
        6,
        Record("", "https://a.test", True),
    ),
    ("wikitext", {"source": "text", "config": "wikitext-2-raw-v1"}, 2, Record("", " = Harrowmere = \n", True)),
    ("bookcorpus", {"source": "text"}, 4, Record("", "A book text, the one of number 0.", True)),
    ("copyright", {"source": "copyright", "split": "hp_qa"}, 2, Record("Once upon", " a time.", True)),
    (
        "copyright",
        {"source": "copyright", "split": "hp_qa", "raw": False},
        2,
        Record("Once upon", " a time."),
    ),
    ("toxic_prompts", {"source": "toxic_prompts"}, 2, Record("The bell", " rang.", True)),
]


@pytest.mark.parametrize(("folder", "asked", "count", "first"), CASES)
def test_a_published_folder_is_read_as_it_is_published(
    folders: Path, folder: str, asked: dict[str, Any], count: int, first: Record
) -> None:
    records = read(path=str(folders / folder), **asked)
    assert (len(records), records[0]) == (count, first)
    assert read(path=str(folders / folder), rows=1, **asked) == [first]


def test_every_published_source_is_among_the_cases() -> None:
    assert {asked["source"] for _, asked, _, _ in CASES} == SPEC_SOURCES.keys() - {"upload", "jsonl"}
    assert {folder for folder, _, _, _ in CASES} == published.LAYOUTS.keys()


READ = """
import dataclasses, json, sys
from pydantic import TypeAdapter
from core.data import SOURCES, Inputs
from core.errors import DataError
from core.spec.sources import Source
for fields in json.load(sys.stdin):
    source = TypeAdapter(Source).validate_python(fields)
    try:
        told = [dataclasses.asdict(record) for record in SOURCES[source.source](source, Inputs())]
    except DataError as error:
        told = [error.param, error.message]
    print(json.dumps(told))
"""


def read_elsewhere(asked: list[dict[str, Any]], cache: Path, **environment: str) -> list[Any]:
    """Records, or param and message, read in a process of its own: the hub's library settles its ways as it loads."""
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0", **environment},
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    return [
        [Record(**{**row, "perturbed_answers": tuple(row["perturbed_answers"])}) for row in rows]
        if isinstance(rows[0], dict)
        else rows
        for rows in told
    ]


def test_the_hub_s_cache_is_read_as_the_folder_is(folders: Path, tmp_path: Path) -> None:
    asked = []
    for i, (folder, fields, _, _) in enumerate(CASES):
        published.in_hub_cache(tmp_path, f"toys/set-{i}", REVISION, folder)
        asked.append({**fields, "hub": f"toys/set-{i}", "revision": REVISION})
    asked += [
        {"source": "tofu", "split": "forget1", "hub": "toys/set-0", "revision": REVISION},
        {"source": "tofu", "split": "forget01", "hub": "toys/set-0", "revision": "f" * 40},
        {"source": "tofu", "split": "forget01", "hub": "toys/nothing", "revision": REVISION},
    ]
    *told, no_split, no_commit, no_set = read_elsewhere(asked, tmp_path, HF_HUB_OFFLINE="1")
    assert told == [read(path=str(folders / folder), **fields) for folder, fields, _, _ in CASES]
    assert no_split[0] == "split"
    assert "Did you mean 'forget01'?" in no_split[1]
    for refused, named in ((no_commit, "f" * 40), (no_set, "toys/nothing")):
        assert refused[0] == "hub"
        assert named in refused[1]
        assert "not in the hub's cache here" in refused[1]


def test_of_the_hub_no_file_is_fetched_that_is_not_needed_and_none_twice(folders: Path, tmp_path: Path) -> None:
    c4 = {"source": "text", "config": "en", "hub": "allenai/c4", "revision": REVISION}
    muse = {"source": "muse", "split": "retain1", "hub": "muse-bench/MUSE-News", "revision": REVISION}
    asked = [
        {**c4, "rows": 2},
        {**c4, "rows": 3},
        muse,
        {**muse, "split": "retain"},
        {**muse, "config": "train", "split": "nothing"},
        {**muse, "hub": "muse-bench/MUSE-Books"},
        {**muse, "revision": "f" * 40},
    ]
    sets = {"allenai/c4": folders / "c4", "muse-bench/MUSE-News": folders / "muse"}
    with hub.serving(hub.Hub(REVISION, sets)) as served:
        first, more, raw, no_split, no_other, no_set, no_commit = read_elsewhere(
            asked, tmp_path, HF_ENDPOINT=served.address
        )
    shards = [f"en/c4-train.{i:05d}-of-00003.json.gz" for i in range(2)]
    # The whole of a large repository is never listed.
    assert served.listed == {("", False), ("en", True), ("raw", True), ("train", True)}
    assert served.fetched == [*shards, "raw/retain1-00000-of-00001.parquet"]
    assert (first, more) == tuple(read(path=str(folders / "c4"), **{**c4, **NOT_OF_THE_HUB, "rows": n}) for n in (2, 3))
    assert raw == read(path=str(folders / "muse"), **{**muse, **NOT_OF_THE_HUB})
    assert (no_split[0], no_other[0]) == ("split", "split")
    assert no_split[1].startswith(
        f"muse-bench/MUSE-News at {REVISION}: there is no split 'retain'. Did you mean 'retain"
    )
    assert "Allowed: forget, retain1, retain2." in no_other[1]
    assert (no_set[0], no_commit[0]) == ("hub", "revision")
    assert "no such data set" in no_set[1]
    assert "no such commit" in no_commit[1]
    # What was fetched is there when the hub is not; what was not is said to be missing.
    (again, missing) = read_elsewhere([{**c4, "rows": 3}, c4], tmp_path, HF_HUB_OFFLINE="1")
    assert again == more
    assert "c4-train.00002-of-00003.json.gz is missing" in missing[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of path"),
        ({"path": "p", "hub": "locuslab/TOFU", "revision": REVISION}, "exactly one of path"),
        ({"hub": "locuslab/TOFU"}, "hub needs a revision"),
        ({"path": "p", "revision": REVISION}, "revision belongs to hub"),
        ({"hub": "locuslab/TOFU", "revision": "main"}, "full commit hash of 40 hex digits"),
        ({"hub": "locuslab/TOFU", "revision": REVISION[:7]}, "full commit hash of 40 hex digits"),
        ({"hub": "locuslab/TOFU", "revision": REVISION.upper()}, "full commit hash of 40 hex digits"),
        ({"hub": "../TOFU", "revision": REVISION}, "pattern"),
        ({"hub": "a/b/c", "revision": REVISION}, "pattern"),
    ],
)
def test_a_set_has_one_place_and_a_hub_set_a_commit(fields: dict[str, Any], message: str) -> None:
    for name in SPEC_SOURCES.keys() - {"upload", "jsonl"}:
        needs = {"tofu": {"split": "forget01"}, "muse": {"split": "forget"}, "wmdp": {"config": "wmdp-bio"}}
        with pytest.raises(ValidationError, match=message):
            SPEC.validate_python({"source": name, **needs.get(name, {}), **fields})


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "/etc", "", "a\0", "x" * 97])
def test_no_name_in_a_spec_leads_out_of_the_folder(name: str) -> None:
    for fields in ({"config": name}, {"split": name}):
        with pytest.raises(ValidationError):
            SPEC.validate_python({"source": "text", "path": "p", **fields})


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"source": "tofu", "path": "{}/none", "split": "x"}, "path", "none cannot be read as a folder: No such file"),
        ({"source": "tofu", "path": "{}/tofu", "split": "forget1"}, "split", "Did you mean 'forget01'? Allowed: f"),
        ({"source": "tofu", "path": "{}/empty", "split": "x"}, None, "no data files (.jsonl, .json, .parquet, .csv"),
        ({"source": "muse", "path": "{}/muse", "config": "raw", "split": "retain"}, "split", "Allowed: forget, hold"),
        ({"source": "muse", "path": "{}/wmdp", "split": "forget"}, "config", "'raw'. Allowed: wmdp-bio, wmdp-chem"),
        ({"source": "text", "path": "{}/wikitext", "config": "wikitext-2"}, "config", "mean 'wikitext-2-raw-v1'?"),
        ({"source": "text", "path": "{}/bookcorpus", "column": "words"}, "column", "'words'. There are: text"),
        ({"source": "text", "path": "{}/c4", "config": "en", "column": "txt"}, "column", "line 1: there is no column"),
        ({"source": "copyright", "path": "{}/bookcorpus"}, "column", "no column 'prompt'. There are: text"),
    ],
)
def test_what_is_missing_is_named_with_what_is_there(
    folders: Path, fields: dict[str, Any], param: str | None, message: str
) -> None:
    (folders / "empty").mkdir(exist_ok=True)
    forget = {**fields, "path": fields["path"].format(folders)}
    with pytest.raises(DataError) as caught:
        read_sets(Data.model_validate({"forget": forget}), Inputs())
    known = param is not None and param in type(SPEC.validate_python(forget)).model_fields
    assert caught.value.param == (f"data.forget.{param}" if known else param)
    assert message in caught.value.message
    assert not known or caught.value.message.startswith(f"data.forget.{param}: ")
    assert forget["path"] in caught.value.message


def test_a_limit_reads_no_further_file_and_without_one_no_part_may_be_missing(tmp_path: Path) -> None:
    published.c4(tmp_path)
    (tmp_path / "en" / "c4-train.00001-of-00003.json.gz").write_bytes(b"never looked at")
    (tmp_path / "en" / "c4-train.00002-of-00003.json.gz").unlink()
    asked = {"source": "text", "path": str(tmp_path), "config": "en"}
    assert len(read(rows=2, **asked)) == 2
    with pytest.raises(DataError, match=r"c4-train\.00001-of-00003\.json\.gz cannot be read: it is damaged"):
        read(rows=3, **asked)
    published.c4(tmp_path)
    (tmp_path / "en" / "c4-train.00000-of-00003.json.gz").unlink()
    with pytest.raises(DataError, match=r"c4-train\.00000-of-00003\.json\.gz is missing"):
        read(**asked)


def test_a_split_that_is_there_twice_is_not_guessed_at(tmp_path: Path) -> None:
    published.write(tmp_path / "train.jsonl", published.texts("one"))
    assert len(read(source="text", path=str(tmp_path))) == 3
    published.write(tmp_path / "old-train.jsonl", published.texts("old"))
    assert read(source="text", path=str(tmp_path))[0].answer.startswith("A one text")
    published.write(tmp_path / "train.csv", published.texts("two"))
    with pytest.raises(DataError, match=r"more than once: train\.csv and train\.jsonl"):
        read(source="text", path=str(tmp_path))


def test_digits_in_a_csv_file_are_text(tmp_path: Path) -> None:
    file = published.write(tmp_path / "rows.csv", [{"prompt": "2 + 2 =", "response": 4}])
    assert read(source="copyright", path=str(file)) == [Record("2 + 2 =", "4", raw=True)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet", "rows.csv", "rows.json"])
def test_one_file_in_any_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": 'He said, "Go', "response": "42"}, {"prompt": "Ça\nva", "response": ' "well".\n'}]
    file = published.write(tmp_path / name, rows)
    if name == "rows.json":
        file.write_text("\n " + json.dumps(rows))
    wanted = [Record(row["prompt"], row["response"], raw=True) for row in rows]
    assert read(source="copyright", path=str(file)) == wanted


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.jsonl", b'{"text": "a"}\nnone\n', r"rows\.jsonl, line 2: not JSON"),
        ("rows.jsonl", b"[1]\n", r"rows\.jsonl, row 1: expected a JSON object, got int"),
        ("rows.jsonl", b'{"text": 1}\n', r"rows\.jsonl, line 1: field 'text' must be a string, got int"),
        ("rows.jsonl", b'{"text": " "}\n', r"rows\.jsonl holds no records"),
        ("rows.jsonl.gz", b"no gzip", r"rows\.jsonl\.gz cannot be read: it is damaged"),
        ("rows.parquet", b"no parquet", r"rows\.parquet is no Parquet file"),
        ("rows.csv", b"text\n1,2\n", r"rows\.csv is no CSV file"),
    ],
)
def test_a_bad_row_or_file_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read(source="text", path=str(tmp_path / name))


BORN = "Where was Maribel Tosk born?"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.csv", f"{BORN},Harrowmere\nWho?,She.\n", "There are 2; is there a header line?"),
        ("rows.csv", "Maribel,Harrowmere\nWho?,She.\n", "There are 2; is there a header line?"),
        ("rows.jsonl", json.dumps({BORN: "In Harrowmere.", "a": 1}), "There are: a, 1 not shown"),
        ("rows.json", json.dumps([{BORN: "In Harrowmere."}]), "There are: 1 not shown"),
        ("rows.jsonl", json.dumps({"x" * 65: "", "It is Harrowmere": ""}), "There are: 2 not shown"),
    ],
)
def test_what_stands_where_names_should_is_not_told(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=r"there is no column 'text'\. ") as caught:
        read(source="text", path=str(tmp_path / name))
    assert caught.value.message.endswith(told)
    assert not any(word in caught.value.message for word in ("Maribel", "Harrowmere", "xxx"))


PEOPLE = [{"question": f"Who is {i}?", "answer": f"It is {i}."} for i in range(10)]


def data(tmp_path: Path, rows: list[dict[str, Any]] = PEOPLE, **fields: Any) -> Data:
    file = published.write(tmp_path / "rows.jsonl", rows)
    return Data.model_validate({"forget": {"source": "jsonl", "path": str(file)}, **fields})


def test_a_share_is_drawn_by_the_seed_and_the_rest_is_retained(tmp_path: Path) -> None:
    drawn = []
    everything = read_sets(data(tmp_path), Inputs())["forget"]
    for seed in (0, 0, 1, 2, 3):
        sets = read_sets(data(tmp_path, forget_ratio=0.3, self_retain=True, seed=seed), Inputs())
        assert len(sets["forget"]) == 3
        assert not set(sets["forget"]) & set(sets["retain"])
        assert sorted(sets["forget"] + sets["retain"], key=everything.index) == everything
        for part in sets.values():
            assert sorted(part, key=everything.index) == part
        drawn.append(sets["forget"])
    assert drawn[0] == drawn[1]
    assert len({tuple(part) for part in drawn}) > 2
    assert list(read_sets(data(tmp_path, forget_ratio=0.3), Inputs())) == ["forget"]
    assert len(read_sets(data(tmp_path, forget_ratio=1e-9), Inputs())["forget"]) == 1


def test_what_is_forgotten_is_not_retained_by_a_second_copy_of_the_row(tmp_path: Path) -> None:
    rows = [PEOPLE[0], PEOPLE[1]] * 5
    for seed in range(5):
        wanted = data(tmp_path, rows, forget_ratio=0.1, self_retain=True, seed=seed)
        sets = read_sets(wanted, Inputs())
        assert len(sets["forget"]) == 1
        assert len(sets["retain"]) == 5
        assert sets["forget"][0] not in sets["retain"]
    with pytest.raises(DataError, match="none is left to retain"):
        read_sets(data(tmp_path, [PEOPLE[0]] * 4, forget_ratio=0.5, self_retain=True), Inputs())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"self_retain": True}, "needs a forget_ratio below 1"),
        ({"self_retain": True, "forget_ratio": 0.5, "retain": {"source": "jsonl", "path": "x"}}, "either it or retain"),
        ({"forget_ratio": 0}, "greater than 0"),
        ({"retain": {"source": "jsonl", "path": "f", "rows": 3}}, "very set to forget"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    spec = {"model": "m", "method": "GA", "data": {"forget": {"source": "jsonl", "path": "f"}, **fields}}
    with pytest.raises(SpecError, match=message):
        parse(spec)


def test_two_kinds_of_response_of_one_set_are_two_sets() -> None:
    source = {"source": "pku_saferlhf", "path": "p"}
    assert Data.model_validate({"forget": source, "retain": {**source, "response": "safe"}}).has_retain
