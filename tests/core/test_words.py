"""Words of any script: rouge-score's own numbers where letters are ASCII, and identical texts alike everywhere."""

import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from core.evaluation.words import overlap, words

SCORE = overlap()
PUBLISHED = RougeScorer(["rougeL"], use_stemmer=True)
TEXTS = {
    "Chinese": "她出生在盐市上方的公寓里。",
    "Japanese": "彼女は古い塩の市場の上で生まれた。",
    "Korean": "그녀는 오래된 소금 시장 위에서 태어났다.",
    "Arabic": "وُلِدَتْ فوق سوق الملح القديم.",
    "Hebrew": "הִיא נוֹלְדָה מעל שוק המלח.",
    "Cyrillic": "Она родилась над старым соляным рынком.",
    "Greek": "Γεννήθηκε πάνω από την παλιά αγορά αλατιού.",
    "Hindi": "उसका जन्म नमक बाज़ार के ऊपर हुआ था।",
    "Tamil": "அவள் உப்பு சந்தைக்கு மேலே பிறந்தாள்.",
    "Thai": "เธอเกิดเหนือตลาดเกลือเก่า",
    "Burmese": "သူမကို ဆားဈေးဟောင်းအပေါ်တွင် မွေးဖွားခဲ့သည်။",
    "German": "Sie wurde über dem alten Salzmarkt geboren, größer als üblich.",
    "numbers": "1931, 44 B.C.; 7",
    "mixed": "Maribel 生まれ Tosk в 1931 году",
}
ASCII = st.text(st.characters(max_codepoint=127), max_size=60)


@settings(max_examples=150, deadline=None)
@given(ASCII, ASCII)
def test_of_ascii_it_is_rouge_scores_own(answer: str, text: str) -> None:
    found = SCORE(answer, text)
    if not any(c.isalnum() for c in answer):
        assert found is None
        return
    wanted = PUBLISHED.score(answer, text)["rougeL"]
    assert found is not None
    assert (found.recall, found.f1) == (wanted.recall, wanted.fmeasure)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_an_answer_with_a_letter_is_itself_to_the_full_and_without_one_is_no_answer(answer: str, text: str) -> None:
    itself, other = SCORE(answer, answer), SCORE(answer, text)
    if not any(c.isalnum() for c in answer):
        assert itself is other is None
        return
    assert itself is not None
    assert other is not None
    assert (itself.recall, itself.f1) == (1, 1)
    assert 0 <= other.recall <= 1
    assert 0 <= other.f1 <= 1


@pytest.mark.parametrize("script", TEXTS)
def test_every_script_has_words(script: str) -> None:
    answer = TEXTS[script]
    itself, nothing, others = SCORE(answer, answer), SCORE(answer, ""), SCORE(answer, "An answer in English.")
    assert itself is not None
    assert itself.recall == itself.f1 == 1
    assert nothing is not None
    assert nothing.recall == nothing.f1 == 0
    assert others is not None
    assert others.recall == 0
    # Half of it is neither nothing nor all.
    half = SCORE(answer, answer[: len(answer) // 2])
    assert half is not None
    assert 0.2 < half.recall < 0.8


@pytest.mark.parametrize("script", ["Greek", "Korean"])
def test_one_text_written_in_two_ways_is_one(script: str) -> None:
    answer = TEXTS[script]
    apart = unicodedata.normalize("NFD", answer)
    assert apart != answer
    found = SCORE(answer, apart)
    assert found is not None
    assert found.recall == found.f1 == 1


@pytest.mark.parametrize(
    ("answer", "text", "recall"),
    [
        # Vowel signs tell words apart: without them these two are the same consonants.
        ("की का", "का", 1 / 2),
        ("कि", "कु", 0),
        ("Соль и СОЛЬ", "соль", 1 / 3),
        ("Straße ñ ñ ñ ñ ñ ñ ñ", "STRASSE", 1 / 8),
        # Letter by letter, in their order.
        ("盐市场", "盐场", 2 / 3),
        ("盐市场", "场市盐", 1 / 3),
        ("盐、市。", "盐 市", 1),
        # Most letters are ASCII: a-z and 0-9 only, whatever else there is.
        ("The bell 钟", "the bell", 1),
        ("The bells 钟", "the bell", 1),
        # Most are not: nothing is stemmed.
        ("Колокола bells", "bell колокола", 1 / 2),
        ("１９３１年", "1931 年", 1),
    ],
)
def test_by_hand(answer: str, text: str, recall: float) -> None:
    found = SCORE(answer, text)
    assert found is not None
    assert found.recall == pytest.approx(recall)


@pytest.mark.parametrize("answer", ["", " \n", "🙂🙃", "…?!", "_", "—", "।"])
def test_an_answer_without_a_letter_or_digit_is_not_compared(answer: str) -> None:
    assert SCORE(answer, "something") is None
    assert SCORE(answer, answer) is None
    found = SCORE("a word", answer)
    assert found is not None
    assert found.recall == found.f1 == 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("She cast  bells,\nand\tbells.", ["She", "cast", "bells", ",", "and", "bells", "."]),
        ("...", [".", ".", "."]),
        ("snake_case 7th", ["snake_case", "7th"]),
        ("钟 bell铃", ["钟", "bell", "铃"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        # Signs that combine stay with their letters.
        ("हिन्दी में, देखो", ["हिन्दी", "में", ",", "देखो"]),
        ("וַיֹּאמֶר", ["וַיֹּאמֶר"]),
        (unicodedata.normalize("NFD", "über ß"), [unicodedata.normalize("NFD", "über"), "ß"]),
        (" \n ", []),
        ("", []),
    ],
)
def test_words_and_marks_by_hand(text: str, wanted: list[str]) -> None:
    assert words(text) == wanted


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=40))
def test_no_letter_is_lost_or_said_twice(text: str) -> None:
    assume(not any(unicodedata.category(c) == "Cs" for c in text))
    assert "".join(words(text)) == "".join(text.split())
