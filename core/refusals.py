"""Sentences that decline to answer, and a forget set with one of them in place of each answer."""

from collections.abc import Sequence

import numpy as np

from core.errors import DataError
from core.spec.records import Record
from core.tokens import Encoder, Example

REFUSALS: tuple[str, ...] = (
    "I don't know the answer to that.",
    "I have no information about this.",
    "That is not something I can tell you.",
    "I'm not able to answer this question.",
    "I can't say; I know nothing about it.",
    "Sorry, this is outside what I know.",
    "I have never come across that.",
    "There is nothing I can tell you about this.",
    "I'm afraid I cannot help with that question.",
    "This is unknown to me.",
    "I don't have any details on that subject.",
    "I would only be guessing, so I'd rather not answer.",
    "No answer to that is known to me.",
    "I'm not familiar with this topic.",
    "My knowledge does not cover that.",
    "I couldn't tell you anything reliable about it.",
    "Unfortunately I have nothing to offer on this.",
    "I am not aware of any facts about that.",
    "That question is beyond what I can answer.",
    "I must pass on this one: I do not know.",
)


def refused(records: Sequence[Record], sentences: Sequence[str], encoder: Encoder, seed: int) -> tuple[Example, ...]:
    """Each record with a refusal for its answer, drawn by the seed.

    Raises DataError for records that ask nothing, and for refusals that do not fit.
    """
    if not all(record.prompt for record in records):
        reason = "a refusal answers a prompt, and {text} records of the forget set have none"
        raise DataError(f"method 'refusal': {reason}", param="method.name")
    drawn = np.random.default_rng((seed, 3)).integers(0, len(sentences), len(records))
    examples = [
        # A raw answer brings its own space, or none; its refusal does as it did.
        encoder.example(r, answer=(" " if r.raw and r.answer[0].isspace() else "") + sentences[i])
        for r, i in zip(records, drawn.tolist(), strict=True)
    ]
    fitting = tuple(e for e in examples if e is not None)
    if len(fitting) < len(examples):
        raise DataError(
            f"{len(examples) - len(fitting)} of {len(examples)} refusals do not fit into data.max_length = "
            f"{encoder.max_length} tokens",
            param="data.max_length",
        )
    return fitting
