"""What the evaluation benchmark runs on: TOFU's four sets, or shipped rows, and a 25M-parameter Llama that has learnt
where their answers end. What it answers need not be right: only how long an answer is decides what generating costs.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.rows import ROOT, Size, llama
from core.data.jsonl import read_file
from core.model import save
from core.scratch import train_tokenizer
from core.spec.records import Record

Records = Mapping[str, Sequence[Record]]
TOFU = {
    "forget": "{}_perturbed",
    "retain": "retain_perturbed",
    "real_authors": "real_authors_perturbed",
    "world_facts": "world_facts_perturbed",
}


def read_records(tofu: Path | None, forget: str = "forget01") -> dict[str, list[Record]]:
    """All records by set. `tofu`: a folder with TOFU's published files, of which `forget` is to be forgotten; None: the
    shipped people, the first third to be forgotten, the others retained."""
    if tofu is None:
        people = read_file(ROOT / "examples" / "people.jsonl", "people", None)
        cut = len(people) // 3
        return {"forget": people[:cut], "retain": people[cut:]}
    files = {name: file.format(forget) for name, file in TOFU.items()}
    return {name: read_file(tofu / f"{file}.json", file, None) for name, file in files.items()}


def trained(
    every: Records, learnt: Records, size: Size, home: Path, *, steps: int, threads: int, seed: int = 0
) -> Path:
    """A model folder under `home`, kept there for the next time: a tokenizer of `every` record, and a model trained for
    so many steps of 16 rows on those of `learnt`, by the engine's own fine-tuning."""
    rows = [{"question": r.prompt, "answer": r.answer} for part in learnt.values() for r in part]
    texts = [
        text
        for part in every.values()
        for r in part
        for text in (r.prompt, r.answer, r.paraphrased_answer or "", *r.perturbed_answers)
    ]
    told = json.dumps([rows, texts, vars(size), steps, threads, seed], sort_keys=True)
    folder = home / f"model-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    model = folder / "trained" / "model"
    if (folder / "trained" / "finetune.json").exists():
        return model
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "rows.jsonl"
    lines.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    save(llama(size, seed), train_tokenizer(texts, size.vocab), folder / "untrained")
    spec = {
        "model": str((folder / "untrained").resolve()),
        "data": {"train": {"source": "jsonl", "path": str(lines.resolve())}},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01},
        "training": {"steps": steps, "batch_size": 8, "warmup": 0.1, "micro_batch_tokens": 8192},
        "seed": seed,
        "threads": threads,
    }
    (folder / "spec.json").write_text(json.dumps(spec, indent=1))
    command = [sys.executable, "-m", "core.finetune", str(folder / "spec.json"), "--out", str(folder / "trained")]
    made = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    if made.returncode:
        raise RuntimeError(f"training the model failed: {made.stdout.splitlines()[-1:]}")
    return model
