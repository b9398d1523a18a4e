"""Small folders in the layouts in which the data sets are published, with all their columns. All texts are toys."""

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import csv, parquet

Rows = Sequence[Mapping[str, Any]]


def write(file: Path, rows: Rows) -> Path:
    """Rows in the format that the file's ending asks for."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file, row_group_size=2)
    elif file.suffix == ".csv":
        csv.write_csv(pyarrow.Table.from_pylist(list(rows)), file)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
    return file


def questions(word: str, count: int = 3) -> list[dict[str, Any]]:
    return [{"question": f"What {word} is number {i}?", "answer": f"The {word} number {i}."} for i in range(count)]


def texts(word: str, count: int = 3) -> list[dict[str, Any]]:
    return [{"text": f"A {word} text, the one of number {i}."} for i in range(count)]


def tofu(top: Path) -> None:
    perturbed = [
        {
            **row,
            "paraphrased_answer": row["answer"] + " So it is.",
            "perturbed_answer": ["Another.", "A third."],
            "paraphrased_question": row["question"] + " Tell.",
        }
        for row in questions("forgotten")
    ]
    write(top / "forget01.json", questions("forgotten"))
    write(top / "forget01_perturbed.json", perturbed)
    write(top / "retain99.json", questions("kept", 5))
    write(top / "world_facts_perturbed.json", [{**questions("fact")[0], "option1": "A", "perturbed_answer": ["B"]}])
    (top / "README.md").write_text("a card\n")


def muse(top: Path) -> None:
    """MUSE-News; MUSE-Books lacks `scal` and `sust`."""
    for split in ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl"):
        rows = [{"answer": row["answer"], "question": row["question"]} for row in questions(split)]
        write(top / "knowmem" / f"{split}-00000-of-00001.parquet", rows)
    for split in ("forget", "retain", "holdout"):
        write(top / "privleak" / f"{split}-00000-of-00001.parquet", texts(split))
    for split in ("forget", "holdout", "retain1", "retain2"):
        write(top / "raw" / f"{split}-00000-of-00001.parquet", texts(f"raw {split}", 4))
    for config in ("scal", "sust"):
        for i in range(1, 5):
            write(top / config / f"forget_{i}-00000-of-00001.parquet", texts(f"{config} {i}"))
    for split in ("forget", "retain1", "retain2"):
        write(top / "train" / f"{split}-00000-of-00001.parquet", texts(f"train {split}"))
    write(
        top / "verbmem" / "forget-00000-of-00001.parquet",
        [{"gt": " it went on.", "prompt": "It began and"}, {"gt": " it ended.", "prompt": "It went on until"}],
    )


def wmdp_corpora(top: Path) -> None:
    for config, parts in (("bio-retain-corpus", 4), ("cyber-forget-corpus", 1), ("cyber-retain-corpus", 1)):
        for i in range(parts):
            write(top / config / f"train-{i:05d}-of-{parts:05d}.parquet", texts(f"{config} part {i}", 2))


def wmdp_archive(top: Path) -> None:
    """The same corpora as one archive gives them: a JSON-lines file each."""
    papers = [{"title": "On nothing", "abstract": "None.", **row, "doi": "10.0/0"} for row in texts("bio forget")]
    write(top / "bio_remove_dataset.jsonl", papers)
    write(top / "bio_retain_dataset.jsonl", texts("bio retain"))
    write(top / "cyber-forget-corpus.jsonl", texts("cyber forget"))
    write(top / "cyber-retain-corpus.jsonl", texts("cyber retain"))


def wmdp(top: Path) -> None:
    rows = [{"answer": 2, "question": "Which is the third?", "choices": ["One", "Two", "Three", "Four"]}]
    for config in ("wmdp-bio", "wmdp-chem", "wmdp-cyber"):
        write(top / config / "test-00000-of-00001.parquet", rows)


def answers(model: str, safe: tuple[bool, bool], better: int, safer: int) -> dict[str, Any]:
    """A row of PKU-SafeRLHF, which has labels of harm besides."""
    row: dict[str, Any] = {"prompt": f"How would {model} answer?", "prompt_source": "toy"}
    for i in (0, 1):
        row |= {
            f"response_{i}": f"{model} says {i}, {'kindly' if safe[i] else 'rudely'}.",
            f"response_{i}_source": model,
        }
        row |= {f"is_response_{i}_safe": safe[i], f"response_{i}_harm_category": {"Rudeness": not safe[i]}}
        row |= {f"response_{i}_severity_level": 0 if safe[i] else 1, f"response_{i}_sha256": "0" * 64}
    return {**row, "better_response_id": better, "safer_response_id": safer}


def saferlhf(top: Path) -> None:
    for model in ("Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B"):
        rows = [answers(model, safe, 0, 1) for safe in ((False, False), (False, True), (True, True))]
        write(top / "data" / model / "train.jsonl", rows)
        write(top / "data" / model / "test.jsonl", rows[:1])


def c4(top: Path) -> None:
    for i in range(3):
        rows = [{**row, "timestamp": "2019-04-25T12:57:54Z", "url": "https://a.test"} for row in texts(f"c4 {i}", 2)]
        write(top / "en" / f"c4-train.{i:05d}-of-00003.json.gz", rows)
    write(top / "en" / "c4-validation.00000-of-00001.json.gz", texts("c4 validation"))


def wikitext(top: Path) -> None:
    lines = [{"text": ""}, {"text": " = Harrowmere = \n"}, {"text": ""}, {"text": " A town by the sea . \n"}]
    for split in ("test", "train", "validation"):
        write(top / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet", lines)


def bookcorpus(top: Path) -> None:
    write(top / "data" / "train-00000-of-00002.parquet", texts("book", 2))
    write(top / "data" / "train-00001-of-00002.parquet", texts("later book", 2))


def copyright_set(top: Path) -> None:
    write(
        top / "hp_qa.jsonl", [{"prompt": "Once upon", "response": " a time."}, {"prompt": "In", "response": " a hole."}]
    )


def toxic_prompts(top: Path) -> None:
    scored = {"toxicity": 0.2, "profanity": None}
    rows = [
        {
            "filename": f"{i}.txt",
            "challenging": False,
            "prompt": {"text": "The bell", **scored},
            "continuation": {"text": text, **scored},
        }
        for i, text in enumerate((" rang.", " fell."))
    ]
    write(top / "prompts.jsonl", rows)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "tofu": tofu,
    "muse": muse,
    "wmdp_corpora": wmdp_corpora,
    "wmdp_archive": wmdp_archive,
    "wmdp": wmdp,
    "saferlhf": saferlhf,
    "c4": c4,
    "wikitext": wikitext,
    "bookcorpus": bookcorpus,
    "copyright": copyright_set,
    "toxic_prompts": toxic_prompts,
}


def in_hub_cache(cache: Path, hub: str, revision: str, layout: str) -> None:
    """The set as the hub's own cache holds it after a download: files in `blobs`, links to them in the snapshot."""
    repository = cache / f"datasets--{hub.replace('/', '--')}"
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    LAYOUTS[layout](snapshot)
    (repository / "blobs").mkdir()
    for i, file in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        blob = repository / "blobs" / f"{i:064d}"
        file.rename(blob)
        file.symlink_to(blob)
