"""Scoring a model that knows its answers: the same numbers and texts whatever the batch, and right by hand."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.data.encode import EncodedSet, encode
from core.data.jsonl import read_file
from core.errors import DataError, Stopped
from core.evaluation import Evidence, measured
from core.evaluation.generate import generate_answers
from core.evaluation.rows import RowScore, read_rows, write_rows
from core.evaluation.score import How, score
from core.events import StopFlag
from core.forward import generating, hidden_states, packs
from core.model import load
from core.report.schema import Measured
from core.spec.records import Record
from core.tokens import Encoder, Example, pack
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
    return score(model, encoder, data, How(batch_tokens, 40), stop=tiny.STOP)


def test_one_row_at_a_time_or_all_at_once(scored: tuple[Any, Encoder, EncodedSet]) -> None:
    model, encoder, data = scored
    alone, together = scores_of(scored, 1), scores_of(scored, 1_000_000)
    for set_name in ("forget", "retain"):
        one, other = measured(Evidence({set_name: alone}), 100), measured(Evidence({set_name: together}), 100)
        for name, found in one.items():
            twin = other[name]
            if name.endswith("embedding_accuracy") or name.startswith("tofu."):
                assert found == twin
                continue
            assert isinstance(found, Measured), name
            assert isinstance(twin, Measured), name
            assert (twin.value, twin.rows) == (pytest.approx(found.value, rel=1e-5), found.rows), name
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
    (row,) = score(model, encoder, data, How(max_new_tokens=60), stop=tiny.STOP)
    wanted = RougeScorer(["rougeL"], use_stemmer=True).score(longer.answer, record.answer)["rougeL"]
    assert row.rouge_l == wanted.recall < wanted.fmeasure == row.rouge_l_f1 < 1
    assert row.generated == record.answer


def test_a_row_whose_perturbation_does_not_fit_has_no_truth_ratio(reciter: Reciter) -> None:
    model, tokenizer = load(reciter.model, torch.device("cpu"))
    encoder = Encoder(tokenizer, "plain", 40)
    fits = Record("Who?", "She.", paraphrased_answer="It was she.", perturbed_answers=("He.", "They."))
    too_long = dataclasses.replace(fits, perturbed_answers=("He.", "They were all of them there." * 10))
    data = encode([fits, too_long], encoder, "both")
    one, other = score(model, encoder, data, How(max_new_tokens=1), stop=tiny.STOP)
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
        score(model, encoder, data, How(200, 4), stop=stop, progress=progress)
    assert len(seen) == 3


def test_a_common_beginning_is_computed_once_and_changes_nothing(scored: tuple[Any, Encoder, EncodedSet]) -> None:
    model, encoder, data = scored
    examples = [*data.examples[:6], *(e for row in range(6) for _, e in data.variants(row, encoder) if e is not None)]
    apart, shared = pack(examples, model.device), pack(examples, model.device, share=True)
    assert shared.ids.shape[1] < 0.8 * apart.ids.shape[1]
    assert torch.equal(shared.ids[0, shared.at], apart.ids[0, apart.at])
    with torch.inference_mode():
        assert torch.allclose(hidden_states(model, shared), hidden_states(model, apart), rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.integers(1, 5)), min_size=1, max_size=8)
)
def test_rows_that_share_are_the_rows(rows: list[tuple[list[int], int]]) -> None:
    examples = [Example((1, *ids), min(start, len(ids)), True) for ids, start in rows]
    batch = pack(examples, torch.device("cpu"), share=True)
    assert batch.layout is not None
    assert batch.layout.source is not None
    line = batch.ids[0, batch.layout.source]
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    assert line.tolist() == [t for i in order for t in examples[i].ids]
    assert batch.layout.source[batch.layout.target].tolist() == list(range(batch.ids.shape[1]))
    assert batch.targets.tolist() == [t for e in examples for t in e.ids[e.start :]]
    assert batch.ids[0, batch.at].tolist() == [t for e in examples for t in e.ids[e.start - 1 : -1]]
    assert batch.ids.shape[1] == len({e.ids[:n] for e in examples for n in range(1, len(e.ids) + 1)})


def test_padded_on_the_right_and_packed_are_the_same(scored: tuple[Any, Encoder, EncodedSet]) -> None:
    model, _encoder, _data = scored
    packed = scores_of(scored, 4096)
    with generating(model):
        assert not packs(model)
        padded = scores_of(scored, 4096)
    for one, other in zip(packed, padded, strict=True):
        assert one.nll == pytest.approx(other.nll, rel=1e-4)
        assert np.allclose(one.log_probs, other.log_probs, atol=1e-4)
        assert np.allclose(one.std_log_p, other.std_log_p, atol=1e-3)
        assert one.perturbed_losses == pytest.approx(other.perturbed_losses, rel=1e-4)
        assert (one.hits == other.hits).all()
        assert one.generated == other.generated


def test_moments_by_hand(scored: tuple[Any, Encoder, EncodedSet]) -> None:
    model, _, data = scored
    for row, example in list(zip(scores_of(scored, 4096), data.examples, strict=True))[::8]:
        with torch.no_grad():
            log_p = torch.log_softmax(model(torch.tensor([example.ids])).logits[0].double(), -1)[example.start - 1 : -1]
        mean = (log_p.exp() * log_p).sum(-1)
        std = ((log_p.exp() * log_p.square()).sum(-1) - mean.square()).sqrt()
        assert np.allclose(row.mean_log_p, mean, rtol=1e-4, atol=1e-4)
        assert np.allclose(row.std_log_p, std, rtol=1e-3, atol=1e-3)


def test_bf16_holds_to_two_digits_and_leaves_the_weights_as_they_are(scored: tuple[Any, Encoder, EncodedSet]) -> None:
    model, encoder, data = scored
    before = {name: p.clone() for name, p in model.named_parameters()}
    fine = score(model, encoder, data, How(generate=False), stop=tiny.STOP)
    coarse = score(model, encoder, data, How(generate=False, precision="bf16"), stop=tiny.STOP)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    one, other = (measured(Evidence({"forget": rows, "holdout": rows}), 100) for rows in (fine, coarse))
    for name in ("forget.probability", "forget.truth_ratio", "forget.exact_memorization", "holdout.probability"):
        a, b = one[name], other[name]
        assert isinstance(a, Measured)
        assert isinstance(b, Measured)
        assert abs(a.value - b.value) < 0.02, name
    distance = [abs(a.nll / a.tokens - b.nll / b.tokens) for a, b in zip(fine, coarse, strict=True)]
    assert 0 < max(distance) < 0.1
    spread = [np.abs(a.std_log_p - b.std_log_p).max() for a, b in zip(fine, coarse, strict=True)]
    assert max(spread) < 0.3


def test_rows_come_back_from_their_file(scored: tuple[Any, Encoder, EncodedSet], tmp_path: Path) -> None:
    rows = scores_of(scored, 4096)
    rows[0].continued, rows[0].bleu = {"rouge_l_100": 0.25}, {"100": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}
    rows[0].nearest = True
    file = write_rows(tmp_path / "rows" / "after-forget.parquet", rows, {"set": "forget"})
    assert file.stat().st_mode & 0o077 == 0
    again, about = read_rows(file)
    assert about == {"set": "forget"}
    for one, other in zip(rows, again, strict=True):
        for field in dataclasses.fields(RowScore):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert (a.dtype == b.dtype and (a == b).all()) if isinstance(a, np.ndarray) else a == b, field.name
    with pytest.raises(DataError, match="holds no scored rows"):
        read_rows(Path(__file__))


def test_rows_leave_the_batch_when_they_end_and_no_text_changes(scored: tuple[Any, Encoder, EncodedSet]) -> None:
    model, encoder, data = scored
    prompts = [e.prompt for e in data.examples[:-1]]
    eos = encoder.tokenizer.eos_token_id
    alone = []
    for prompt in prompts:
        with generating(model):
            made = model.generate(
                input_ids=torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=eos, pad_token_id=eos
            )
        alone.append(encoder.tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True).strip())
    assert len({len(text) for text in alone}) > 10, "rows that all end together would leave nothing to see"
    assert generate_answers(model, encoder.tokenizer, prompts, 40, tiny.STOP) == alone
    # No room for all of them at once: begun again in halves, down to one row, which is always written.
    for most in (1, 300, 2000):
        assert generate_answers(model, encoder.tokenizer, prompts, 40, tiny.STOP, most_tokens=most) == alone


def test_a_stop_breaks_a_text_off(scored: tuple[Any, Encoder, EncodedSet]) -> None:
    model, encoder, data = scored
    stop = StopFlag()
    stop.set()
    texts = generate_answers(model, encoder.tokenizer, [e.prompt for e in data.examples[:3]], 40, stop)
    assert texts == ["", "", ""] or all(len(text) < 12 for text in texts)
