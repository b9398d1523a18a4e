"""Sentences that decline to answer, put in place of a forget answer by the `refusal` term."""

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
