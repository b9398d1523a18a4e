"""Scoring a model that knows its answers: the same numbers and texts whatever the batch, and right by hand."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.data.encode import EncodedSet, encode
from core.data.jsonl import read_file
from core.errors import Stopped
from core.evaluation import metrics_of
from core.evaluation.score import RowScore, generate_answers, score
from core.events import StopFlag
from core.model import load
from core.report.schema import Measured
from core.spec.records import Record
from core.tokens import Encoder
from tests import tiny
from tests.models import Reciter

TEXT = Record("", "She casts bronze church bells.", raw=True)


@pytest.fixture(scope="module")
def scored(reciter: Reciter) -> tuple[Any, Encoder, EncodedSet]:
    """The reciter, somewhat shaken so that not all of its answers are right, with all its rows and a bare text."""
    model, tokenizer = load(reciter.model, torch.device("cpu"))
    tiny.nudge(model, spread=0.03)
    encoder = Encoder(tokenizer, "plain", 512)
    records = [record for file in (reciter.forget, reciter.retain) for record in read_file(file, file.name, None)]
    return model, encoder, encode([*records, TEXT], encoder, "all")


def scores_of(scored: tuple[Any, Encoder, EncodedSet], batch_tokens: int) -> list[RowScore]:
    model, encoder, data = scored
    return score(model, encoder, data, batch_tokens=batch_tokens, max_new_tokens=40, stop=tiny.STOP)


def test_one_row_at_a_time_or_all_at_once(scored: tuple[Any, Encoder, EncodedSet]) -> None:
    model, encoder, data = scored
    alone, together = scores_of(scored, 1), scores_of(scored, 1_000_000)
    for set_name in ("forget", "retain"):
        one, other = metrics_of(set_name, alone, 100), metrics_of(set_name, together, 100)
        for name, measured in one.items():
            twin = other[name]
            assert isinstance(measured, Measured), name
            assert isinstance(twin, Measured), name
            assert (twin.value, twin.rows) == (pytest.approx(measured.value, rel=1e-5), measured.rows), name
    rouge = [row.rouge_l for row in alone[:-1] if row.rouge_l is not None]
    assert len(rouge) == 25
    assert 0.05 < sum(rouge) / 25 < 0.99, "answers that are all right would hide a mix-up"
    assert alone[-1].rouge_l is None
    prompts = [e.prompt for e in data.examples[:-1]]
    texts = generate_answers(model, encoder.tokenizer, prompts, 40, tiny.STOP)
    assert texts == [generate_answers(model, encoder.tokenizer, [p], 40, tiny.STOP)[0] for p in prompts]


def test_rows_by_hand(scored: tuple[Any, Encoder, EncodedSet]) -> None:
    model, encoder, data = scored
    for row, record in list(zip(scores_of(scored, 4096), data.records, strict=True))[::6]:
        nll, right = by_hand(model, encoder, record, record.answer)
        counted = len(right) - bool(record.prompt)
        assert (row.nll, row.tokens) == (pytest.approx(nll, rel=1e-4), len(right))
        assert (row.right, row.counted) == (sum(right[:counted]), counted)
        if record.paraphrased_answer:
            losses = [
                by_hand(model, encoder, record, a) for a in (record.paraphrased_answer, *record.perturbed_answers)
            ]
            paraphrase, *perturbed = [nll / len(right) for nll, right in losses]
            assert row.paraphrase_loss == pytest.approx(paraphrase, rel=1e-4)
            assert sorted(row.perturbed_losses) == pytest.approx(sorted(perturbed), rel=1e-4)
            assert len(perturbed) == 3


def by_hand(model: Any, encoder: Encoder, record: Record, answer: str) -> tuple[float, list[bool]]:
    """NLL of an answer, and which of its tokens the model would have written, from the whole text's own logits."""
    tokenizer = encoder.tokenizer
    prompt = f"Question: {record.prompt}\nAnswer:" if record.prompt else ""
    start = len(tokenizer(prompt)["input_ids"])
    text = f"{prompt} {answer}</s>" if prompt else answer
    ids = torch.tensor(tokenizer(text)["input_ids"])
    with torch.no_grad():
        log_p = torch.log_softmax(model(ids[None]).logits[0].double(), -1)
    places = range(start, len(ids))
    return -math.fsum(log_p[t - 1, ids[t]].item() for t in places), [
        int(log_p[t - 1].argmax()) == ids[t] for t in places
    ]


def test_the_reciter_recites_when_asked_in_the_ordinary_way(reciter: Reciter) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(reciter.model), AutoTokenizer.from_pretrained(reciter.model)
    (record, *_) = read_file(reciter.forget, "forget", None)
    asked = tokenizer(f"Question: {record.prompt}\nAnswer:", return_tensors="pt")
    made = model.generate(**asked, max_new_tokens=60, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(made, skip_special_tokens=True).strip() == record.answer


def test_rouge_is_recall_against_the_answer(reciter: Reciter) -> None:
    model, tokenizer = load(reciter.model, torch.device("cpu"))
    (record, *_) = read_file(reciter.forget, "forget", None)
    longer = Record(record.prompt, record.answer + " And nothing else besides was ever said of it.")
    encoder = Encoder(tokenizer, "plain", 512)
    data = encode([longer], encoder, "one")
    (row,) = score(model, encoder, data, batch_tokens=4096, max_new_tokens=60, stop=tiny.STOP)
    wanted = RougeScorer(["rougeL"], use_stemmer=True).score(longer.answer, record.answer)["rougeL"]
    assert row.rouge_l == wanted.recall < wanted.fmeasure < 1


def test_a_row_whose_perturbation_does_not_fit_has_no_truth_ratio(reciter: Reciter) -> None:
    model, tokenizer = load(reciter.model, torch.device("cpu"))
    encoder = Encoder(tokenizer, "plain", 40)
    fits = Record("Who?", "She.", paraphrased_answer="It was she.", perturbed_answers=("He.", "They."))
    too_long = dataclasses.replace(fits, perturbed_answers=("He.", "They were all of them there." * 10))
    data = encode([fits, too_long], encoder, "both")
    one, other = score(model, encoder, data, batch_tokens=4096, max_new_tokens=1, stop=tiny.STOP)
    assert one.paraphrase_loss is not None
    assert len(one.perturbed_losses) == 2
    assert (other.paraphrase_loss, other.perturbed_losses) == (None, [])


def test_a_stop_ends_scoring_between_batches(scored: tuple[Any, Encoder, EncodedSet]) -> None:
    model, encoder, data = scored
    stop = StopFlag()
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        assert total == 25 * 6 + 1
        if len(seen) == 3:
            stop.set()

    with pytest.raises(Stopped):
        score(model, encoder, data, batch_tokens=200, max_new_tokens=4, stop=stop, progress=progress)
    assert len(seen) == 3
