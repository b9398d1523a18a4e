"""Whether a generated text is still one: a model that babbles, or says nothing, has not forgotten well.

Entropy is that of ROME (arXiv:2202.05262). Words are what white space divides, as written.
"""

import math
from collections import Counter
from collections.abc import Sequence

# ROME's weights of bigrams and trigrams; their mean is 1.
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def repetition(words: Sequence[str]) -> float:
    """Share of the trigrams that were said before, 0 to 1; 0 below three words, which cannot repeat one.

    An empty text repeats nothing: that it says nothing shows in its entropy.
    """
    said = _ngrams(words, 3)
    return 1 - len(set(said)) / len(said) if said else 0.0


def entropy(words: Sequence[str]) -> float:
    """Entropy, in bits, of the text's bigrams and trigrams, the second counting twice; 0 where there is none."""
    return sum(weight * _bits(_ngrams(words, n)) for n, weight in _WEIGHTS.items()) / len(_WEIGHTS)


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _bits(ngrams: Sequence[tuple[str, ...]]) -> float:
    return sum(count / len(ngrams) * math.log2(len(ngrams) / count) for count in Counter(ngrams).values())
