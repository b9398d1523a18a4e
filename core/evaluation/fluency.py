"""Whether a generated text is still one: a model that babbles, or says nothing, has not forgotten well.

Entropy is that of ROME (arXiv:2202.05262). Counted are the model's tokens: babble may be one long word, or none.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

# ROME's weights of bigrams and trigrams; their mean is 1.
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def repetition(tokens: Sequence[Hashable]) -> float | None:
    """Share of the trigrams that were said before, 0 to 1; 0 below three tokens, which cannot repeat one.

    None of an empty text: silence is no fluent answer, and no repetition either.
    """
    if not tokens:
        return None
    said = _ngrams(tokens, 3)
    return 1 - len(set(said)) / len(said) if said else 0.0


def entropy(tokens: Sequence[Hashable]) -> float:
    """Entropy, in bits, of the text's bigrams and trigrams, the second counting twice; 0 where there is none."""
    return sum(weight * _bits(_ngrams(tokens, n)) for n, weight in _WEIGHTS.items()) / len(_WEIGHTS)


def _ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _bits(ngrams: Sequence[tuple[Hashable, ...]]) -> float:
    return sum(count / len(ngrams) * math.log2(len(ngrams) / count) for count in Counter(ngrams).values())
