"""SOUL's copyright task (arXiv:2404.18239): the model goes on from the first 100 and 300 tokens of each passage.

What it writes is compared with how the passage goes on.
"""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from core.data.encode import EncodedSet
from core.evaluation.rows import RowScore
from core.evaluation.score import How, answers
from core.evaluation.words import Overlap, overlap
from core.events import StopFlag
from core.model import positions
from core.parallel.processes import ALONE, Processes
from core.precision import computing
from core.spec.metrics import PROMPT_LENGTHS
from core.spec.records import Record
from core.tokens import Encoder, Example

_NO_LIMIT = 1 << 62


def continued(
    model: PreTrainedModel,
    encoder: Encoder,
    data: EncodedSet,
    how: How,
    *,
    stop: StopFlag,
    advance: Callable[[int], None] = lambda _: None,
    world: Processes = ALONE,
) -> list[RowScore]:
    """ROUGE-L and what BLEU is made of for each passage and prompt length. Raises Stopped.

    A passage has neither where it ends before, or where the model has no room for the prompt and one token more. Of a
    text that was divided each piece is a passage.
    """
    plain = Encoder(encoder.tokenizer, encoder.format, _NO_LIMIT)
    before = plain.prompt_ids(Record("", "", raw=True)) + _ids(plain, f"{encoder.system}\n\n" if encoder.system else "")
    passages = [_ids(plain, passage) for passage in whole(data.records)]
    scores = [RowScore() for _ in passages]
    compare, bleu = overlap(), _bleu()
    for length in PROMPT_LENGTHS:
        prompts, rest = {}, {}
        # What the model has no room to write it is not asked for.
        limit = max(0, min(how.max_new_tokens, positions(model) - len(before) - length))
        for i, passage in enumerate(passages):
            following = passage[length : length + limit]
            text = encoder.tokenizer.decode(following, skip_special_tokens=True).strip()
            if text:
                shown = (*before, *passage[:length])
                prompts[i], rest[i] = Example((*shown, *following), len(shown), False), text
        with computing(model, how.precision):
            texts = answers(model, encoder.tokenizer, prompts, how, stop, advance, world)
        for i, text in texts.items():
            _enter(scores[i], length, text, rest[i], compare(rest[i], text), bleu)
    return scores


def whole(records: Sequence[Record]) -> list[str]:
    """The passages as texts: a beginning together with how it goes on. Raw ones are joined as they stand, as they are
    in training; a question and its answer by a space."""
    return [f"{r.prompt}{'' if r.raw or _parted(r) else ' '}{r.answer}" for r in records]


def _parted(record: Record) -> bool:
    return record.prompt[-1:].isspace() or record.answer[:1].isspace()


def _ids(encoder: Encoder, text: str) -> list[int]:
    """Ids of the text, without what the tokenizer puts before any."""
    nothing = encoder.prompt_ids(Record("", "", raw=True))
    return encoder.prompt_ids(Record(text, "", raw=True))[len(nothing) :]


def _enter(score: RowScore, length: int, text: str, rest: str, found_l: Overlap | None, bleu: Any) -> None:
    found = bleu.sentence_score(text, [rest])
    if found_l is not None:
        score.continued[f"rouge_l_{length}"] = found_l.recall
    score.bleu[str(length)] = [*map(int, found.counts), *map(int, found.totals), int(found.sys_len), int(found.ref_len)]


def _bleu() -> Any:
    """sacrebleu's, with its own tokenisation; of one sentence only the counts are used."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)
