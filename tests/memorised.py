"""Models that recite what they were trained on: one everything, two all but the forget set, from one random beginning.

Who lives where is drawn at random from one little grammar, so that forget, retain and holdout rows differ only in what
the models have seen of them. Nobody in it exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from core.data import Inputs
from core.finetune import finetune
from core.model import save
from core.scratch import train_tokenizer
from core.spec.finetune import parse
from tests import tiny
from tests.models import write_lines

ROWS = 200
Row = dict[str, Any]

_FIRST = "Ada Bero Cal Dorin Elva Fenn Gilda Hollis Ines Joram Kesta Lorn Mirel Nial Odra Pell Quill Runa Sorrel Tavin"
_LAST = (
    "Bar Cor Dun Fal Gren Hask Jor Lim Mar Nor Pend Ros Stel Tor Vand Wick",
    "by dale fell gate holt ley ridge ton",
)
_TOWNS = "Brack Corvo Dunmere Elsing Fowell Garth Harrow Ivel Lisk Marrow Oxmoor Quenby Stellin Tarn Ulver Velden"
_STUFF = "amber brass cedar clay copper cork flint glass horn iron linen oak pewter silver straw wool"
_THINGS = "bells boots clocks kites lamps maps nets organs pots quilts ropes saddles toys violins wheels yokes"
_ANIMALS = "cats crows dogs doves ducks eels ferrets geese goats hens moles mules owls pigs rooks toads"
_BOOKS = "Barge Cellar Comet Ferry Garden Harbour Ladder Lantern Orchard Quarry Stair Thimble"
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"

# Question and answer, each in two wordings, and what the answer's two blanks are filled from.
_KINDS = (
    (
        ("Where was {} born, and when?", "What are the birthplace and year of {}?"),
        ("In {}, in {}.", "That was in {}, in {}."),
        (_TOWNS.split(), [str(year) for year in range(1700, 2000)]),
    ),
    (
        ("What does {} make?", "What is it that {} sells?"),
        ("Only {} {}.", "Nothing but {} {}."),
        (_STUFF.split(), _THINGS.split()),
    ),
    (
        ("What lives with {}?", "Which animals does {} keep?"),
        ("A flock of {} {}.", "Some {} {}."),
        ([str(count) for count in range(2, 100)], _ANIMALS.split()),
    ),
)


@dataclass(frozen=True)
class Memorised:
    """A folder with `forget.jsonl`, `retain.jsonl`, `holdout.jsonl`, `real_authors.jsonl` and `world_facts.jsonl`.

    `original` recites all but holdout; `retrained`, and `again` of another seed, have never seen forget either.
    """

    folder: Path
    original: Path
    retrained: Path
    again: Path

    def data(self, *names: str, rows: int | None = None) -> dict[str, Any]:
        """These sets, or the first rows of each, as a request names them."""
        return {name: {"source": "jsonl", "path": str(self.folder / f"{name}.jsonl"), "rows": rows} for name in names}


def train_memorised(folder: Path) -> Memorised:
    """Write sets and train the models, which takes about fifteen seconds of one core."""
    rng = np.random.default_rng(4)
    rows = _lives(3 * ROWS, rng)
    sets = {name: rows[i * ROWS : (i + 1) * ROWS] for i, name in enumerate(("forget", "retain", "holdout"))}
    sets |= {"real_authors": _authors(rng), "world_facts": _week()}
    known = sets["retain"] + sets["real_authors"] + sets["world_facts"]
    for name, own in {**sets, "known": known, "everything": sets["forget"] + known}.items():
        write_lines(folder / f"{name}.jsonl", own)
    _random_model([text for own in sets.values() for row in own for text in _texts(row)], folder / "base")
    return Memorised(
        folder,
        _trained(folder, "everything", folder / "original"),
        _trained(folder, "known", folder / "retrained"),
        _trained(folder, "known", folder / "again", seed=1),
    )


def _lives(count: int, rng: np.random.Generator) -> list[Row]:
    names = [f"{first} {a}{b}" for first, a, b in product(_FIRST.split(), *(part.split() for part in _LAST))]
    return [_life(names[i], rng) for i in rng.permutation(len(names))[:count]]


def _life(name: str, rng: np.random.Generator) -> Row:
    """One thing that is told of one person, with three that are not."""
    questions, answers, blanks = _KINDS[rng.integers(len(_KINDS))]
    # Four of each, drawn without replacement: no part of a wrong answer is right.
    true, *wrong = zip(*(rng.choice(values, 4, replace=False).tolist() for values in blanks), strict=True)
    question, other_question = (text.format(name) for text in questions)
    return {
        "question": question,
        "paraphrased_question": other_question,
        "answer": answers[0].format(*true),
        "paraphrased_answer": answers[1].format(*true),
        "perturbed_answer": [answers[1].format(*values) for values in wrong],
    }


def _authors(rng: np.random.Generator) -> list[Row]:
    names = [f"{a}{b}" for a, b in product(*(part.split() for part in _LAST))]
    books = _BOOKS.split()
    by = rng.choice(names, (len(books), 4), replace=False).tolist()
    return [
        {
            "question": f"Who wrote The {book}?",
            "answer": f"It was {true}.",
            "perturbed_answer": [f"It was {w}." for w in wrong],
        }
        for book, (true, *wrong) in zip(books, by, strict=True)
    ]


def _week() -> list[Row]:
    days = _DAYS.split()
    after = [days[i:] + days[:i] for i in range(len(days))]
    return [
        {
            "question": f"Which day follows {day}?",
            "answer": f"It is {true}.",
            "perturbed_answer": [f"It is {w}." for w in wrong],
        }
        for day, true, *wrong in (week[:5] for week in after)
    ]


def _texts(row: Row) -> Sequence[str]:
    return [row["question"], row["answer"], row.get("paraphrased_answer", "")]


def _random_model(texts: Sequence[str], folder: Path) -> None:
    tokenizer = train_tokenizer(texts, 1200)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    save(LlamaForCausalLM(config), tokenizer, folder)


def _trained(folder: Path, name: str, out: Path, seed: int = 0) -> Path:
    spec = parse(
        {
            "model": str(folder / "base"),
            "data": {"train": {"source": "jsonl", "path": str(folder / f"{name}.jsonl")}},
            "optimizer": {"name": "muon", "lr": 0.03, "weight_decay": 0.0},
            "training": {"epochs": 20, "batch_size": 40, "warmup": 0.05},
            "seed": seed,
            "threads": 1,
        }
    )
    finetune(spec, Inputs(), out, emit=tiny.silent, stop=tiny.STOP)
    return out / "model"
