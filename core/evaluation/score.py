"""One pass over a set gives a row of numbers a record, and every metric reads those rows.

Teacher-forced: the true answer, its paraphrase and its perturbations, of which no common beginning is computed twice.
Generated: one greedy answer.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from core.data.batches import by_length
from core.data.encode import EncodedSet
from core.evaluation.fluency import entropy, repetition
from core.evaluation.generate import generate_answers
from core.evaluation.rows import RowScore
from core.evaluation.words import Overlap, overlap
from core.events import StopFlag
from core.forward import collate, head, hidden_states, packs
from core.model import positions
from core.parallel.processes import ALONE, Processes
from core.precision import Precision, computing
from core.tokens import Encoder, Example

Progress = Callable[[int, int], None]
# Logits held at one time, in numbers: what a cache of a processor holds, and what keeps a GPU busy.
_LOGITS_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 27}
# Of what a forward pass may hold, so many times as many keys and values may be held in generating.
_HELD = 2
# How much longer than the true answer a generated one is taken to be when rows are put together.
_LONGER = 1.25


@dataclass(frozen=True)
class How:
    """What is computed of each row. `variants`: paraphrased and perturbed answers too; `moments`: mean and standard
    deviation of log p at each answer token; `generate`: a greedy answer; not `forced`: nothing else."""

    batch_tokens: int = 8192
    max_new_tokens: int = 128
    precision: Precision = "fp32"
    variants: bool = True
    moments: bool = True
    generate: bool = True
    forced: bool = True


@dataclass(frozen=True)
class _Task:
    """One teacher-forced answer of one record: `slot` says which."""

    row: int
    slot: str
    example: Example


@dataclass(frozen=True)
class _Forced:
    """What teacher forcing shows of one answer, an entry an answer token; the moments of the true answer only."""

    log_probs: Any
    hits: Any
    mean_log_p: Any
    std_log_p: Any


def score(
    model: PreTrainedModel,
    encoder: Encoder,
    data: EncodedSet,
    how: How,
    *,
    stop: StopFlag,
    progress: Progress | None = None,
    rows: Sequence[int] | None = None,
    world: Processes = ALONE,
) -> list[RowScore]:
    """Scores of the given rows (all by default), in their order. Raises Stopped between batches.

    Processes that can share the batches do, and all of them return all scores.
    """
    chosen = range(len(data.records)) if rows is None else rows
    tasks: list[list[_Task]] = []
    for row in chosen:
        stop.check()
        tasks.append(_tasks(row, data, encoder, how.variants) if how.forced else [])
    prompted = [i for i, row in enumerate(chosen) if data.records[row].prompt] if how.generate else []
    total, done = sum(map(len, tasks)) + len(prompted), 0

    def advance(by: int) -> None:
        nonlocal done
        done += by
        if progress:
            progress(done, total)

    with computing(model, how.precision):
        scores = _forced_scores(model, tasks, how, stop, advance, world)
        for made, row in zip(scores, chosen, strict=True):
            made.zlib_bytes = len(zlib.compress(data.records[row].answer.encode()))
        prompts = {i: data.examples[chosen[i]] for i in prompted}
        texts = answers(model, encoder.tokenizer, prompts, how, stop, advance, world)
    compare = overlap() if texts else None
    for i, text in texts.items():
        assert compare is not None
        said = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = _reachable(data.records[chosen[i]].answer, prompts[i], encoder, limit_of(model, prompts[i], how))
        _enter_text(scores[i], text, compare(answer, text), said)
    return scores


def _reachable(answer: str, example: Example, encoder: Encoder, limit: int) -> str:
    """The answer as far as a generated text may go: a model that recites all it may must not seem to have forgotten."""
    if example.answer_tokens - example.ends <= limit:
        return answer
    cut: str = encoder.tokenizer.decode(example.ids[example.start : example.start + limit], skip_special_tokens=True)
    return cut.strip()


def limit_of(model: PreTrainedModel, example: Example, how: How) -> int:
    """How many tokens are generated at most after an example's prompt."""
    return max(0, min(how.max_new_tokens, positions(model) - len(example.prompt)))


def answers(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: dict[int, Example],
    how: How,
    stop: StopFlag,
    advance: Callable[[int], None] = lambda _: None,
    world: Processes = ALONE,
) -> dict[int, str]:
    """Greedy answers to the examples' prompts, by key. Raises Stopped."""
    # Rows are put together with those of the same limit only, so that no answer depends on what it is batched with.
    limits: dict[int, list[int]] = {}
    for key, example in prompts.items():
        limits.setdefault(limit_of(model, example, how), []).append(key)

    def length(key: int) -> int:
        example = prompts[key]
        return len(example.prompt) + min(how.max_new_tokens, int(_LONGER * example.answer_tokens) + 1)

    batches = [batch for _, keys in sorted(limits.items()) for batch in by_length(keys, length, how.batch_tokens)]
    found: list[tuple[int, str]] = []
    for turn, mine in world.turns(batches):
        stop.check()
        if mine is not None:
            most = _HELD * how.batch_tokens
            asked = [prompts[key].prompt for key in mine]
            limit = limit_of(model, prompts[mine[0]], how)
            found += zip(mine, generate_answers(model, tokenizer, asked, limit, stop, most_tokens=most), strict=True)
        # An answer that was broken off is none.
        stop.check()
        advance(sum(1 for batch in turn for _ in batch))
    return dict(world.gathered(found))


def _tasks(row: int, data: EncodedSet, encoder: Encoder, variants: bool) -> list[_Task]:
    tasks = [_Task(row, "answer", data.examples[row])]
    wanted = data.variants(row, encoder) if variants else ()
    # A ratio over the few that fit would be another number: where one does not, the row has no truth ratio.
    if all(example is not None for _, example in wanted):
        tasks += [_Task(row, slot, example) for slot, example in wanted if example is not None]
    return tasks


def _forced_scores(
    model: PreTrainedModel,
    tasks: Sequence[Sequence[_Task]],
    how: How,
    stop: StopFlag,
    advance: Callable[[int], None],
    world: Processes,
) -> list[RowScore]:
    """Rows with everything that comes of teacher forcing; a record's answers go together, sharing their beginnings."""
    shares = packs(model)

    def length(i: int) -> int:
        first = tasks[i][0].example
        return first.start + sum(task.example.answer_tokens for task in tasks[i])

    batches: list[list[tuple[int, int]]]
    if shares:
        groups = by_length([i for i, own in enumerate(tasks) if own], length, how.batch_tokens, packed=True)
        batches = [[(i, t) for i in group for t in range(len(tasks[i]))] for group in groups]
    else:
        items = [(i, t) for i, own in enumerate(tasks) for t in range(len(own))]
        batches = by_length(items, lambda item: len(tasks[item[0]][item[1]].example.ids), how.batch_tokens)
    forced: list[tuple[tuple[int, int], _Forced]] = []
    for turn, batch in world.turns(batches):
        stop.check()
        if batch is not None:
            of = [tasks[i][t] for i, t in batch]
            forced += zip(batch, _teacher_forced(model, of, how.moments), strict=True)
        advance(sum(map(len, turn)))
    scores = [RowScore() for _ in tasks]
    for (i, t), seen in sorted(world.gathered(forced), key=lambda one: one[0]):
        _enter(scores[i], tasks[i][t], seen, how.moments)
    return scores


@torch.inference_mode()
def _teacher_forced(model: PreTrainedModel, tasks: Sequence[_Task], moments: bool) -> list[_Forced]:
    batch = collate(model, [task.example for task in tasks], share=True)
    # Answers that begin alike are predicted from one place; the head looks at it once.
    unique, inverse = torch.unique(batch.at, return_inverse=True)
    hidden = hidden_states(model, replace(batch, at=unique))
    counts = [task.example.answer_tokens for task in tasks]
    device = hidden.device
    of_answer = torch.tensor([task.slot == "answer" for task in tasks], device=device)[batch.row]
    order = torch.argsort(inverse, stable=True)
    log_probs, hits = hidden.new_zeros(len(inverse), dtype=torch.float32), torch.zeros_like(inverse, dtype=torch.bool)
    mean, std = torch.zeros_like(log_probs), torch.zeros_like(log_probs)
    vocabulary = model.config.get_text_config().vocab_size
    # Not too few rows either: of a large vocabulary the head itself would be read again for each.
    size = max(128, _LOGITS_AT_ONCE.get(device.type, 1 << 24) // vocabulary)
    # How many answer tokens the places before each chunk predict.
    bounds = torch.bincount(inverse, minlength=len(unique)).cumsum(0).tolist()
    for begin in range(0, len(unique), size):
        end = min(begin + size, len(unique))
        mine = order[bounds[begin - 1] if begin else 0 : bounds[end - 1]]
        logits = head(model, hidden[begin:end])
        place, target = inverse[mine] - begin, batch.targets[mine]
        # Not the logits less their norm: where both are large their difference has lost digits.
        log_p = logits.log_softmax(-1)
        log_probs[mine] = log_p[place, target]
        hits[mine] = logits.argmax(-1)[place] == target
        if moments and (wanted := mine[of_answer[mine]]).numel():
            log_p = log_p[inverse[wanted] - begin]
            p = log_p.exp()
            average = (p * log_p).sum(-1)
            mean[wanted] = average
            std[wanted] = (p * log_p.sub_(average[:, None]).square_()).sum(-1).sqrt()
    columns = [t.cpu().numpy() for t in (log_probs, hits, mean, std)]
    cuts = np.cumsum(counts)[:-1]
    return [_Forced(*own) for own in zip(*(np.split(column, cuts) for column in columns), strict=True)]


def _enter(score: RowScore, task: _Task, seen: _Forced, moments: bool) -> None:
    nll = -float(seen.log_probs.astype(np.float64).sum())
    mean = nll / task.example.answer_tokens
    if task.slot == "answer":
        score.nll, score.tokens, score.ends = nll, task.example.answer_tokens, task.example.ends
        score.log_probs, score.hits = seen.log_probs, seen.hits
        if moments:
            score.mean_log_p, score.std_log_p = seen.mean_log_p, seen.std_log_p
    elif task.slot == "paraphrase":
        score.paraphrase_loss = mean
    else:
        score.perturbed_losses.append(mean)


def _enter_text(score: RowScore, text: str, found: Overlap | None, said: Sequence[int]) -> None:
    score.generated = text
    score.rouge_l, score.rouge_l_f1 = (None, None) if found is None else (found.recall, found.f1)
    score.repetition, score.entropy = repetition(said), entropy(said)
