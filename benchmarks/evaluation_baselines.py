"""How others score a set: `plain` runs the model for every metric and every answer of every row, after TOFU's way of
working (arXiv:2401.06121); `batched` once a kind of answer, padded, as a careful hand would with transformers alone.

Written for comparison against torch and transformers alone. Both give the numbers that Lethe gives.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax
from transformers import GenerationConfig, PreTrainedModel

from benchmarks.baselines import IGNORED, Row, collate
from core.evaluation.rows import RowScore

T = TypeVar("T")


class Answer(Row, Protocol):
    """A prompt and an answer to it; `ends`: the last token is end-of-sequence."""

    @property
    def ends(self) -> bool: ...


@dataclass(frozen=True)
class Question:
    """The answers of one record as ids, and the true one as text."""

    text: str
    answer: Answer
    paraphrase: Answer | None
    perturbed: tuple[Answer, ...]


# Enters what a metric needs of one answer into its row: logits (tokens, vocab), targets (tokens,).
Reader = Callable[[RowScore, Question, Tensor, Tensor], None]


def _loss(row: RowScore, _question: Question, logits: Tensor, targets: Tensor) -> None:
    nll = cross_entropy(logits, targets, reduction="none")
    row.nll, row.log_probs = float(nll.double().sum()), (-nll).cpu().numpy()


def _hits(row: RowScore, _question: Question, logits: Tensor, targets: Tensor) -> None:
    row.hits = (logits.argmax(-1) == targets).cpu().numpy()


def _compressed(row: RowScore, question: Question, _logits: Tensor, _targets: Tensor) -> None:
    row.zlib_bytes = len(zlib.compress(question.text.encode()))


def _moments(row: RowScore, _question: Question, logits: Tensor, _targets: Tensor) -> None:
    log_p = log_softmax(logits, dim=-1)
    p = log_p.exp()
    mean = (p * log_p).sum(-1, keepdim=True)
    row.mean_log_p = mean[:, 0].cpu().numpy()
    row.std_log_p = (p * (log_p - mean) ** 2).sum(-1).sqrt().cpu().numpy()


# What each metric reads off a pass over the true answer.
METRICS: Mapping[str, tuple[Reader, ...]] = {
    "probability": (_loss,),
    "exact_memorization": (_hits,),
    "extraction_strength": (_hits,),
    "loss": (_loss,),
    "zlib": (_loss, _compressed),
    "min_k": (_loss,),
    "min_k_plus_plus": (_loss, _moments),
}


@torch.inference_mode()
def plain(model: PreTrainedModel, questions: Sequence[Question], metrics: Sequence[str]) -> list[RowScore]:
    """A pass for every metric of the true answer, and one for every other answer, a row at a time without padding."""
    rows = []
    for question in questions:
        row = _row(question)
        for name in metrics:
            logits, targets = _alone(model, question.answer)
            for read in METRICS[name]:
                read(row, question, logits, targets)
        if question.paraphrase is not None:
            row.paraphrase_loss = float(cross_entropy(*_alone(model, question.paraphrase)))
        row.perturbed_losses = [float(cross_entropy(*_alone(model, answer))) for answer in question.perturbed]
        rows.append(row)
    return rows


@torch.inference_mode()
def batched(
    model: PreTrainedModel, questions: Sequence[Question], metrics: Sequence[str], at_a_time: int = 32
) -> list[RowScore]:
    """A pass for the true answers, one for the paraphrases, one for each perturbation, of so many rows at a time."""
    rows = [_row(question) for question in questions]
    readers = dict.fromkeys(read for name in metrics for read in METRICS[name])
    for i, logits, targets in _together(model, [q.answer for q in questions], at_a_time):
        for read in readers:
            read(rows[i], questions[i], logits, targets)
    for i, logits, targets in _together(model, [q.paraphrase for q in questions], at_a_time):
        rows[i].paraphrase_loss = float(cross_entropy(logits, targets))
    for k in range(max((len(q.perturbed) for q in questions), default=0)):
        kth = [q.perturbed[k] if k < len(q.perturbed) else None for q in questions]
        for i, logits, targets in _together(model, kth, at_a_time):
            rows[i].perturbed_losses.append(float(cross_entropy(logits, targets)))
    return rows


@torch.inference_mode()
def generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], at_a_time: int, max_new_tokens: int, end: int
) -> list[list[int]]:
    """Greedy answers as ids, `end` included where the model came to it; padded on the left, in the order given."""
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, eos_token_id=end, pad_token_id=end
    )
    made: list[list[int]] = []
    for batch in _batches(prompts, at_a_time):
        width = max(map(len, batch))
        ids = torch.tensor([[end] * (width - len(p)) + list(p) for p in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=model.device)
        out: Any = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)  # type: ignore[operator]
        for line in out[:, width:].tolist():
            made.append(line[: line.index(end) + 1] if end in line else line)
    return made


def compare_texts(rows: Sequence[RowScore], questions: Sequence[Question], texts: Sequence[str]) -> None:
    """Enter the generated texts and their ROUGE-L against the true answers, with TOFU's settings."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for row, question, text in zip(rows, questions, texts, strict=True):
        found = scorer.score(question.text, text.strip())["rougeL"]
        row.generated, row.rouge_l, row.rouge_l_f1 = text.strip(), float(found.recall), float(found.fmeasure)


def _row(question: Question) -> RowScore:
    return RowScore(tokens=len(question.answer.ids) - question.answer.start, ends=question.answer.ends)


def _alone(model: PreTrainedModel, answer: Answer) -> tuple[Tensor, Tensor]:
    """Logits and targets of one answer, from a pass over nothing else."""
    ids = torch.tensor([answer.ids], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    return logits[0, answer.start - 1 : -1].float(), ids[0, answer.start :]


def _together(
    model: PreTrainedModel, answers: Sequence[Answer | None], at_a_time: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Place, logits and targets of every answer that there is, from passes over so many of them."""
    there = [(i, answer) for i, answer in enumerate(answers) if answer is not None]
    for part in _batches(there, at_a_time):
        batch = collate([answer for _, answer in part], None, model.device)
        labels = batch.pop("labels")[:, 1:]
        counted = labels != IGNORED
        logits = model(**batch, use_cache=False).logits[:, :-1][counted].float()
        lengths = counted.sum(1).tolist()
        for (i, _), own, targets in zip(part, logits.split(lengths), labels[counted].split(lengths), strict=True):
            yield i, own, targets


def _batches(items: Sequence[T], at_a_time: int) -> Iterator[Sequence[T]]:
    for i in range(0, len(items), at_a_time):
        yield items[i : i + at_a_time]
