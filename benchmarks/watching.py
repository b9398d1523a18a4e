"""What looks along the way cost: `python -m benchmarks.watching [--data FOLDER] [--json] [--out FILE]`.

A 25M-parameter random-init Llama trains as a run does, at default settings, on TOFU's forget01 and retain99 or on
shipped rows; told is the share of the training's own seconds that looks took, within one run.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import ROOT, SIZES, llama
from core.data.encode import encode
from core.data.jsonl import read_file
from core.environment import prepare
from core.evaluation.scorer import Scorer
from core.events import StopFlag
from core.forward import choose_attention
from core.model import load
from core.reference import Reference, observe
from core.scratch import train_tokenizer
from core.spec.job import parse
from core.spec.records import Record
from core.tokens import Encoder
from core.train import Trainer, steps_of
from core.watching import Watcher

# The first two gates always hold, so every look is worth keeping and, where a gate is on texts, asks for some. Gates
# that cannot hold keep training going to its end.
_HOLDS = {"metric": "forget.probability", "at_most": 0.999999}
_KEEPS = {"metric": "retain.probability", "relative_to": "before", "at_least": 0.0}
_NEVER = {"metric": "forget.extraction_strength", "at_most": -1.0}
_NO_TEXT = {"metric": "forget.entropy", "at_least": 1e6}
CASES: dict[str, dict[str, Any]] = {
    "watch": {},
    "stop_when": {"training": {"stop_when": {}}, "gates": [_HOLDS, _KEEPS, _NEVER]},
    "stop_when, gates on texts": {"training": {"stop_when": {}}, "gates": [_HOLDS, _KEEPS, _NO_TEXT]},
}


def main() -> None:
    """Measure every case and print a line each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with TOFU's published files; absent: shipped rows")
    parser.add_argument(
        "--model", type=Path, help="one whose answers end, as benchmarks.evaluate keeps; absent: random"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4, help="a request's default is 4")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of lines")
    parser.add_argument("--out", type=Path, help="write the JSON list to this file as well")
    options = parser.parse_args()
    records = _records(options.data)
    lines = [measure(name, records, options.batch_size, options.threads, options.model) for name in CASES]
    if options.json:
        print(json.dumps(lines))
    else:
        for line in lines:
            print(*(f"{k}={v}" for k, v in line.items()), sep="  ")
    if options.out:
        options.out.write_text(json.dumps(lines, indent=1) + "\n")


def measure(
    name: str, records: dict[str, list[Record]], batch_size: int, threads: int, folder: Path | None = None
) -> dict[str, Any]:
    """One case: seconds of the steps, of the looks, and how many there were."""
    device = prepare(threads)
    if folder is not None:
        model, tokenizer = load(folder, device)
    else:
        size = SIZES["25m"]
        texts = [text for part in records.values() for r in part for text in (r.prompt, r.answer)]
        model, tokenizer = llama(size), train_tokenizer(texts, size.vocab)
        choose_attention(model)
    case = CASES[name]
    spec = parse(
        {
            "model": "model",
            "data": {part: {"source": "jsonl", "path": part} for part in records},
            "method": {"name": "npo", "retain": {"name": "nll"}},
            **case,
            "training": {"batch_size": batch_size, **case.get("training", {})},
        }
    )
    encoder = Encoder(tokenizer, "plain", 512)
    sets = {part: encode(rows, encoder, part) for part, rows in records.items()}
    examples = {part: data.examples for part, data in sets.items()}
    trainer = Trainer(spec, model, examples, Reference(), steps_of(spec, examples))
    needs = {part: trainer.objective.needs[part] for part in trainer.names}
    seen = {part: trainer.feed.rows_ever(part, trainer.steps) for part in trainer.names}
    observe(trainer.reference, needs, model, examples, seen, None, 8192, StopFlag())
    scorer = Scorer(spec, model, encoder, sets, lambda *_, **__: None, StopFlag())
    with tempfile.TemporaryDirectory() as kept_in:
        watcher = Watcher(scorer, trainer, Path(kept_in))
        looking, kept = 0.0, 0

        def timed(look: Any) -> bool:
            nonlocal looking, kept
            best, began = watcher.best, time.perf_counter()
            enough = bool(look())
            looking += time.perf_counter() - began
            kept += watcher.best != best
            return enough

        # The first pass of all pays for what is made only once.
        trainer.gradients(StopFlag())
        # A run takes its first look from the scores before, and pays nothing for it.
        watcher.begin()
        began = time.perf_counter()
        trainer.run(lambda *_, **__: None, StopFlag(), lambda: None, lambda: timed(watcher))
        timed(watcher.close)
        whole = time.perf_counter() - began
    training = whole - looking
    return {
        "case": name,
        "steps": trainer.step,
        "batch_size": batch_size,
        "looks": len(watcher.looks),
        "with_texts": sum(bool(look.get("texts")) for look in watcher.looks),
        "kept": kept,
        "every": watcher.every,
        "training_s": round(training, 2),
        "looking_s": round(looking, 2),
        "share": round(looking / training, 3),
    }


def _records(data: Path | None) -> dict[str, list[Record]]:
    if data is not None:
        files = {"forget": "forget01", "retain": "retain99"}
        return {name: read_file(data / f"{file}.json", file, None) for name, file in files.items()}
    people = read_file(ROOT / "examples" / "people.jsonl", "people", None)
    cut = len(people) // 4
    return {"forget": people[:cut], "retain": people[cut:]}


if __name__ == "__main__":
    main()
