"""Words of any script, for metrics that compare or count them; and ROUGE-L with TOFU's settings."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# Scripts that are written without spaces between words: each of their letters is one.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_WORD = re.compile("u|w+|m")  # in a text of the kinds of its characters


def words(text: str) -> list[str]:
    """Runs of letters and digits with what combines with them, which in many scripts is a vowel; and every other mark
    by itself: a text of nothing but dots repeats itself too. Of scripts without spaces each letter."""
    return [text[found.start() : found.end()] for found in _WORD.finditer("".join(map(_kind, text)))]


@lru_cache(1 << 14)
def _kind(character: str) -> str:
    """Part of a word, a letter of a script without spaces, another mark, or space."""
    if character.isspace():
        return " "
    if _UNSPACED.match(character):
        return "u"
    return "w" if character == "_" or _of_a_word(character) else "m"


def _of_a_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character)[0] == "M"


@dataclass(frozen=True)
class Overlap:
    """ROUGE-L of a text against an answer, each from 0 to 1."""

    recall: float
    f1: float


def overlap() -> Callable[[str, str], Overlap | None]:
    """ROUGE-L by (answer, text); None where the answer holds no word at all.

    The words are rouge-score's, which are of a-z and 0-9 only, so that TOFU's numbers come out. An answer most of whose
    letters are others would have no words, and seem forgotten: its words are made of the letters of any script.
    """
    # Brings nltk, and with it scikit-learn and pandas: seconds and 130 MB that training alone has no use for.
    from rouge_score.rouge_scorer import RougeScorer

    published, of_any_script = (
        RougeScorer(["rougeL"], use_stemmer=True),
        RougeScorer(["rougeL"], tokenizer=_AnyScript()),
    )

    def score(answer: str, text: str) -> Overlap | None:
        letters = [c for c in answer if c.isalnum()]
        if not letters:
            return None
        scorer: Any = published if 2 * sum(map(str.isascii, letters)) >= len(letters) else of_any_script
        found = scorer.score(answer, text)["rougeL"]
        return Overlap(float(found.recall), float(found.fmeasure))

    return score


class _AnyScript:
    """What rouge-score takes for a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        # One form for what can be written in several.
        letters = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        return words("".join(c if _of_a_word(c) else " " for c in letters))
