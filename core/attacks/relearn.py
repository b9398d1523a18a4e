"""Fine-tuning on a few forget rows, or on related text, and a look at the others (arXiv:2406.13356): what was hidden
rather than forgotten comes back with them.

The attacker has the weights: every one trains, also where an adapter or a few layers were all that unlearning changed.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from core.attacks.target import Target, asked, drawn
from core.attacks.untouched import every_weight
from core.data.batches import by_length, rows_of_step
from core.data.encode import EncodedSet
from core.forward import collate, head, hidden_states, packs
from core.report.schema import Absent
from core.spec.attacks import Relearn
from core.tokens import Example
from core.views import in_chunks

# Streams of random rows; training has others.
_BATCHES, _LESSONS = 2, 3
# Tokens in one forward pass: memory only.
_TOKENS = 4096


def relearn(spec: Relearn, target: Target) -> EncodedSet | Absent:
    """Train; the forget rows that are left to score are those of which none was trained on, word for word.

    Raises Stopped.
    """
    lessons = _lessons(spec, target)
    if isinstance(lessons, Absent):
        return lessons
    known = set(lessons)
    left = [(record, example) for record, example in target.forget if example not in known]
    if not left:
        return Absent(absent="all forget rows are alike, word for word: none is left to score after relearning")
    try:
        return _train(spec, target, lessons) or asked(left)
    except torch.OutOfMemoryError:
        needed = 16 * sum(p.numel() for p in every_weight(target.model)) / 2**30
        return Absent(
            absent="out of memory: relearning trains every weight, which with gradients and AdamW's moments takes "
            f"{needed:.1f} GiB, and activations beside that"
        )


def _lessons(spec: Relearn, target: Target) -> list[Example] | Absent:
    """The rows to train on, or why there are none."""
    if spec.on == "forget":
        pool, most = [example for _, example in target.forget], len(target.forget) // 2
        if not most:
            return Absent(absent="there is a single forget row: after relearning it none would be left to score")
    else:
        retain = target.retain
        if retain is None:
            return Absent(absent="there is no retain set to relearn from")
        pool, most = [example for _, example in retain], len(retain)
        if not most:
            return Absent(absent="every retain row is word for word a forget row: none is left to relearn from")
    return drawn(pool, min(spec.rows, most), target.seed, _LESSONS)


def _train(spec: Relearn, target: Target, lessons: list[Example]) -> Absent | None:
    """AdamW steps on the lessons, without dropout. Where a loss is no number, that; else the weights have changed."""
    weights = every_weight(target.model)
    for weight in weights:
        weight.requires_grad_(True)
    fused = target.model.device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(weights, lr=spec.lr, weight_decay=0.0, fused=fused)
    for step in range(spec.steps):
        rows = rows_of_step(step, len(lessons), spec.batch_size, seed=target.seed, stream=_BATCHES)
        loss = gradient(target, [lessons[row] for row in rows])
        if not math.isfinite(loss):
            return Absent(absent=f"relearning diverged: the loss was {loss} at step {step + 1}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return None


def gradient(target: Target, examples: Sequence[Example], at_once: int = _TOKENS) -> float:
    """Gradient of the mean answer-token loss of these rows into `.grad`, in passes of `at_once` tokens; returns the
    loss. Raises Stopped between passes."""
    model, tokens, total = target.model, sum(e.answer_tokens for e in examples), 0.0
    for batch in by_length(examples, lambda e: len(e.ids), at_once, packed=packs(model)):
        target.stop.check()
        with torch.enable_grad():
            made = collate(model, batch)
            vocabulary = model.config.get_text_config().vocab_size
            nll = in_chunks(_nll, partial(head, model), vocabulary, hidden_states(model, made), made.targets)
            loss = nll.sum() / tokens
            loss.backward()
        total += float(loss.detach())
    return total


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets, reduction="none")
