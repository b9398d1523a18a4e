"""One pass over a set gives a row of numbers a record, and every metric reads those rows.

Teacher-forced: the true answer, its paraphrase and its perturbations, mixed by length. Generated: one greedy answer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from core.data.batches import by_length
from core.data.encode import EncodedSet
from core.events import StopFlag
from core.forward import collate, generating, head, hidden_states, packs
from core.model import positions
from core.parallel.processes import ALONE, Processes
from core.tokens import Encoder, Example

Progress = Callable[[int, int], None]


@dataclass
class RowScore:
    """What was measured of one record. Losses are token means in nats; None where the record has no such answer."""

    nll: float = 0.0  # of the whole answer, end of sequence included
    tokens: int = 0
    right: int = 0  # answer tokens where teacher-forced argmax is right, end of sequence not counted
    counted: int = 0  # how many tokens `right` is out of
    paraphrase_loss: float | None = None
    perturbed_losses: list[float] = field(default_factory=list)
    rouge_l: float | None = None

    @property
    def finite(self) -> bool:
        """Whether every loss is a number at all; those of a model that has diverged are not."""
        return math.isfinite(sum(self.perturbed_losses, self.nll) + (self.paraphrase_loss or 0.0))


@dataclass(frozen=True)
class _Task:
    """One teacher-forced answer of one record: `slot` says which."""

    row: int
    slot: str
    example: Example


def score(
    model: PreTrainedModel,
    encoder: Encoder,
    data: EncodedSet,
    *,
    batch_tokens: int,
    max_new_tokens: int,
    stop: StopFlag,
    progress: Progress | None = None,
    generate: bool = True,
    rows: int | None = None,
    world: Processes = ALONE,
) -> list[RowScore]:
    """Scores of the first `rows` records (all by default), in their order. Raises Stopped between batches.

    Processes that can share the batches do, and all of them return all scores.
    """
    count = len(data.records) if rows is None else min(rows, len(data.records))
    tasks: list[_Task] = []
    for row in range(count):
        stop.check()
        tasks += _tasks(row, data, encoder)
    scores = [RowScore() for _ in range(count)]
    prompts = [row for row in range(count) if data.records[row].prompt] if generate else []
    total, done = len(tasks) + len(prompts), 0
    found: list[tuple[int, float, int]] = []
    lengths = [len(task.example.ids) for task in tasks]
    for turn, batch in world.turns(
        by_length(range(len(tasks)), lengths.__getitem__, batch_tokens, packed=packs(model))
    ):
        stop.check()
        if batch is not None:
            found += zip(batch, *_teacher_forced(model, [tasks[i].example for i in batch]), strict=True)
        done += sum(map(len, turn))
        if progress:
            progress(done, total)
    for i, nll, right in world.gathered(found):
        _enter(scores[tasks[i].row], tasks[i], nll, right)
    # One limit for the whole set, so that no answer depends on what it is batched with.
    room = positions(model) - max((len(data.examples[row].prompt) for row in prompts), default=0)
    limit = min(max_new_tokens, room)
    scorer: Any = _rouge() if prompts else None
    # What is generated takes room too: a row's keys and values grow with every token.
    recalls: list[tuple[int, float]] = []
    for turn, mine in world.turns(by_length(prompts, lambda r: len(data.examples[r].prompt) + limit, batch_tokens)):
        stop.check()
        if mine is not None:
            texts = generate_answers(model, encoder.tokenizer, [data.examples[r].prompt for r in mine], limit, stop)
            for row, text in zip(mine, texts, strict=True):
                recalls.append((row, float(scorer.score(data.records[row].answer, text)["rougeL"].recall)))
        # An answer that was broken off is none.
        stop.check()
        done += sum(map(len, turn))
        if progress:
            progress(done, total)
    for row, recall in world.gathered(recalls):
        scores[row].rouge_l = recall
    return scores


def _rouge() -> Any:
    """ROUGE-L with TOFU's settings."""
    # Brings nltk, and with it scikit-learn and pandas: seconds and 130 MB that training alone has no use for.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def _tasks(row: int, data: EncodedSet, encoder: Encoder) -> list[_Task]:
    tasks = [_Task(row, "answer", data.examples[row])]
    wanted = data.variants(row, encoder)
    # A ratio over the few that fit would be another number: where one does not, the row has no truth ratio.
    if all(example is not None for _, example in wanted):
        tasks += [_Task(row, slot, example) for slot, example in wanted if example is not None]
    return tasks


@torch.inference_mode()
def _teacher_forced(model: PreTrainedModel, examples: Sequence[Example]) -> tuple[list[float], list[int]]:
    batch = collate(model, examples)
    logits = head(model, hidden_states(model, batch))
    nll = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none").double()
    counts = torch.tensor([e.answer_tokens for e in examples])
    hits = (logits.argmax(-1) == batch.targets).cpu()
    right = []
    for example, own in zip(examples, hits.split(counts.tolist()), strict=True):
        right.append(int(own[: example.answer_tokens - example.ends].sum()))
    sums = torch.zeros(len(examples), dtype=torch.float64, device=model.device).index_add_(0, batch.row, nll)
    return sums.tolist(), right


def _enter(score: RowScore, task: _Task, nll: float, right: int) -> None:
    mean = nll / task.example.answer_tokens
    if task.slot == "answer":
        score.nll, score.tokens = nll, task.example.answer_tokens
        score.right, score.counted = right, task.example.answer_tokens - task.example.ends
    elif task.slot == "paraphrase":
        score.paraphrase_loss = mean
    else:
        score.perturbed_losses.append(mean)


class _StopOnRequest(StoppingCriteria):
    def __init__(self, stop: StopFlag) -> None:
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> Any:
        return torch.full((input_ids.shape[0],), bool(self.stop), device=input_ids.device)


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: StopFlag
) -> list[str]:
    """Greedy continuations, batched with padding on the left, each ended by end-of-sequence or the limit."""
    width = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long, device=model.device)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    # A model may bring generation settings of its own (beams, penalties): what it holds shows in plain greedy text.
    its_own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with generating(model):
            made = model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
                stopping_criteria=StoppingCriteriaList([_StopOnRequest(stop)]),
            )
    finally:
        model.generation_config = its_own
    return [text.strip() for text in tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)]
