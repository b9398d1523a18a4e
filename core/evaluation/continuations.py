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
from core.parallel.processes import ALONE, Processes
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
    """ROUGE-L and what BLEU is made of for each passage and prompt length; a passage that ends before has neither."""
    passages = whole(data.records)
    scores = [RowScore() for _ in passages]
    unlimited = Encoder(encoder.tokenizer, encoder.format, _NO_LIMIT)
    compare, bleu = overlap(), _bleu()
    for length in PROMPT_LENGTHS:
        prompts, rest = {}, {}
        for i, passage in enumerate(passages):
            cut = _cut(passage, unlimited, length, how.max_new_tokens)
            if cut is not None:
                prompts[i], rest[i] = cut
        texts = answers(model, encoder.tokenizer, prompts, how, stop, advance, world)
        for i, text in texts.items():
            _enter(scores[i], length, text, rest[i], compare(rest[i], text), bleu)
    return scores


def whole(records: Sequence[Record]) -> list[str]:
    """The passages as texts: a beginning together with how it goes on."""
    return [f"{r.prompt}{'' if not r.prompt or r.prompt[-1:].isspace() else ' '}{r.answer}" for r in records]


def _cut(passage: str, encoder: Encoder, length: int, limit: int) -> tuple[Example, str] | None:
    """The first `length` tokens as a prompt, and the text of the next `limit` ones; None where there is no next one."""
    example = encoder.example(Record("", passage, raw=True))
    if example is None:
        return None
    # The beginning-of-sequence token, where there is one, is no token of the passage.
    begins = int(example.ids[0] == encoder.tokenizer.bos_token_id)
    ids = example.ids[: begins + length + limit]
    if len(ids) <= begins + length:
        return None
    rest = encoder.tokenizer.decode(ids[begins + length :], skip_special_tokens=True).strip()
    return (Example(ids, begins + length, False), rest) if rest else None


def _enter(score: RowScore, length: int, text: str, rest: str, found_l: Overlap | None, bleu: Any) -> None:
    found = bleu.sentence_score(text, [rest])
    if found_l is not None:
        score.continued[f"rouge_l_{length}"] = found_l.recall
    score.bleu[str(length)] = [*map(int, found.counts), *map(int, found.totals), int(found.sys_len), int(found.ref_len)]


def _bleu() -> Any:
    """sacrebleu's, with its own tokenisation; of one sentence only the counts are used."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)
