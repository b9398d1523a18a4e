"""Gates that must not hold for want of looking: through whole runs on a model that still knows everything."""

from pathlib import Path
from typing import Any

import pytest
import torch

from core.data.encode import encode
from core.data.jsonl import read_file
from core.evaluation.score import How, score
from core.model import load
from core.report.schema import Absent
from core.tokens import Encoder
from tests import models, tiny
from tests.core.recording import carry_out
from tests.models import Reciter


def judged(reciter: Reciter, out: Path, **fields: Any) -> Any:
    """The report of a run that changes nothing."""
    return carry_out(reciter.spec(**{"method": "origin", "evaluation": {"max_new_tokens": 6}, **fields}), out).report


def test_an_answer_longer_than_may_be_generated_is_compared_as_far_as_it_goes(reciter: Reciter, tmp_path: Path) -> None:
    model, tokenizer = load(reciter.model, torch.device("cpu"))
    encoder = Encoder(tokenizer, "plain", 512)
    data = encode(read_file(reciter.forget, "forget", None), encoder, "forget")
    assert all(example.answer_tokens > 7 for example in data.examples)
    rows = score(model, encoder, data, How(max_new_tokens=6), stop=tiny.STOP)
    # A last token may be the first half of a word.
    assert sum(row.rouge_l or 0 for row in rows) / len(rows) > 0.9
    gates = [{"metric": "forget.rouge_l", "at_most": 0.5}]
    assert judged(reciter, tmp_path, gates=gates).verdict.verdict == "not_passed"


def test_one_row_of_many_does_not_speak_for_the_others(reciter: Reciter, tmp_path: Path) -> None:
    known = [{"text": row["answer"]} for row in models.people(2)]
    unknown = {"question": "Who wound the clock of the tower?", "answer": "Nobody knows that."}
    mixed = models.write_lines(tmp_path / "mixed.jsonl", [*known, unknown])
    gates = [{"metric": "forget.rouge_l", "at_most": 0.9}]
    report = judged(Reciter(reciter.model, mixed, reciter.retain), tmp_path / "out", gates=gates)
    assert report.verdict.verdict == "inconclusive"
    assert report.after["forget.rouge_l"].absent.startswith("only 1 of 11 rows could be measured")


def test_records_that_were_never_looked_at_leave_the_verdict_open(reciter: Reciter, tmp_path: Path) -> None:
    rows = [*models.people(1)[:2], {"question": "Who?", "answer": "Of all of them " * 40}]
    forget = models.write_lines(tmp_path / "forget.jsonl", rows)
    wanted = Reciter(reciter.model, forget, reciter.retain)
    gates = [{"metric": "forget.entropy", "at_least": 0}, {"metric": "forget.extraction_strength", "at_most": 0.999}]
    wanted_data = wanted.spec()["data"] | {"max_length": 100}
    report = judged(wanted, tmp_path / "out", gates=gates[:1], data=wanted_data)
    assert report.forget.too_long == [2]
    assert any("1 records to forget did not fit" in reason for reason in report.verdict.reasons)
    assert report.verdict.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("text", "repeats"), [("....................", 0.9), ("thethethethethethethe", 0.3), ("", None)]
)
def test_babble_repeats_and_silence_says_nothing(reciter: Reciter, text: str, repeats: float | None) -> None:
    from core.evaluation.fluency import repetition

    tokenizer = load(reciter.model, torch.device("cpu"))[1]
    found = repetition(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert found is None if repeats is None else found is not None and found >= repeats


def test_an_attack_that_only_a_few_rows_can_be_asked_by_is_absent(reciter: Reciter, tmp_path: Path) -> None:
    rows = models.people(2)
    for row in rows[1:]:
        row.pop("paraphrased_question", None)
    rows[0]["paraphrased_question"] = "And who is that?"
    forget = models.write_lines(tmp_path / "forget.jsonl", rows)
    evaluation = {"max_new_tokens": 6, "attacks": ["paraphrase"]}
    report = judged(Reciter(reciter.model, forget, reciter.retain), tmp_path / "out", evaluation=evaluation)
    assert report.after["paraphrase.rouge_l"] == Absent(
        absent="only 1 of 10 forget rows can be scored so, which is less than half"
    )


def test_near_holdout_is_at_most_three_times_it() -> None:
    from core.spec.gates import Gate

    near = {"metric": "forget.probability", "relative_to": "holdout"}
    assert Gate(**near, at_most=1.5).speaks_of_forgetting
    assert not Gate(**near, at_most=1e6).speaks_of_forgetting
