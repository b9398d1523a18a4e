"""Attacks by asking differently: the ids that the model is shown, written out by hand."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest

from core.attacks import Target, attacked
from core.data.encode import EncodedSet, encode
from core.evaluation.rows import RowScore
from core.events import StopFlag
from core.report.schema import Absent
from core.spec.attacks import FewShot, Paraphrase, Prefix
from core.spec.records import Record
from core.tokens import Encoder
from tests import tiny

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}<assistant>"
BORN = Record(
    "Where was Maribel born?", "In Harrowmere.", paraphrased_question="Which town?", perturbed_answers=("In Quenby.",)
)
CASTS = Record("What does Maribel make?", "Bronze church bells.", paraphrased_answer="Bells.")
RAW = Record("She was born in", " Harrowmere, above the market.", raw=True)
TEXT = Record("", "She was born in Harrowmere, above the old salt market.", raw=True)
KEPT = [Record(f"Who is {name}?", f"{name} is a baker.") for name in ("Anna", "Bert", "Cleo", "Dora")]


class Seen:
    """Keeps the set that it is to score."""

    data: EncodedSet

    def __call__(self, data: EncodedSet) -> list[RowScore]:
        self.data = data
        return [RowScore(nll=1.0, tokens=1) for _ in data.examples]


class Asked:
    """The attacks of one tokenizer on these records, and what they made of them."""

    def __init__(self, tokenizer: Any, prompt: Any = "plain", max_length: int = 128) -> None:
        self.tokenizer, self.encoder = tokenizer, Encoder(tokenizer, prompt, max_length)
        self.model = tiny.llama(vocab=len(tokenizer), hidden=16, layers=1)

    def __call__(
        self, spec: Any, forget: Sequence[Record], retain: Sequence[Record] = (), **fields: Any
    ) -> EncodedSet | Absent:
        sets = {
            name: encode(rows, self.encoder, name) for name, rows in (("forget", forget), ("retain", retain)) if rows
        }
        given: dict[str, Any] = {"seed": 0, "stop": StopFlag(), **fields}
        seen = Seen()
        rows = attacked(spec, Target(self.model, self.encoder, sets, score=seen, **given))
        return rows if isinstance(rows, Absent) else seen.data

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def texts(self, data: EncodedSet | Absent) -> list[tuple[str, str]]:
        """Prompt and answer of every example, as text."""
        assert isinstance(data, EncodedSet)
        return [(self.tokenizer.decode(e.prompt), self.tokenizer.decode(e.ids[e.start :])) for e in data.examples]


@pytest.fixture
def ask(tokenizer: Any) -> Asked:
    return Asked(tokenizer)


def why(found: EncodedSet | Absent) -> str:
    assert isinstance(found, Absent)
    return found.absent


# In other words


def test_the_question_is_put_in_other_words(ask: Asked) -> None:
    data = ask(Paraphrase(), [CASTS, BORN, RAW, TEXT])
    assert ask.texts(data) == [("<s>Question: Which town?\nAnswer:", " In Harrowmere.</s>")]
    assert isinstance(data, EncodedSet)
    # Scored by the answer alone.
    assert data.records == (Record(BORN.prompt, BORN.answer),)


def test_where_there_are_no_other_words(ask: Asked) -> None:
    assert why(ask(Paraphrase(), [CASTS, RAW, TEXT])) == "no forget row has a paraphrased question"


# The beginning given away


@pytest.mark.parametrize("k", [1, 3])
def test_the_first_tokens_of_the_answer_go_into_the_prompt(ask: Asked, k: int) -> None:
    data = ask(Prefix(k=k), [BORN, RAW])
    assert isinstance(data, EncodedSet)
    for record, row, example in zip([BORN, RAW], data.records, data.examples, strict=True):
        plain = ask.encoder.example(record)
        assert plain
        assert example.ids == plain.ids
        assert example.start == plain.start + k
        assert example.ends
        given = ask.tokenizer.decode(plain.ids[plain.start : plain.start + k])
        assert (given + ask.tokenizer.decode(example.ids[example.start : -1])).strip() == record.answer.strip()
        assert row.answer == ask.tokenizer.decode(example.ids[example.start : -1]).strip()
        assert row.prompt == record.prompt
        assert row.perturbed_answers == ()


def test_answers_that_end_too_soon_are_left_out(ask: Asked) -> None:
    tokens = len(ask.ids(" In Harrowmere."))
    # After all but the full stop nothing is left that anyone could have forgotten.
    assert len(ask.ids(" In Harrowmere")) == tokens - 1
    data = ask(Prefix(k=tokens - 1), [BORN, TEXT])
    assert isinstance(data, EncodedSet)
    assert len(data.records) == 1
    for k in (tokens - 1, tokens, tokens + 1):
        assert why(ask(Prefix(k=k), [BORN])) == f"no forget answer goes on for a word after its first {k} tokens"
    assert isinstance(ask(Prefix(k=tokens - 2), [BORN]), EncodedSet)


def test_a_text_gets_a_prompt(ask: Asked) -> None:
    data = ask(Prefix(k=4), [TEXT])
    assert isinstance(data, EncodedSet)
    ids = ask.ids(TEXT.answer)
    bos = ask.tokenizer.bos_token_id
    assert data.examples[0].prompt == (bos, *ids[:4])
    assert data.examples[0].ids == (bos, *ids)
    (record,) = data.records
    assert record == Record(ask.tokenizer.decode(ids[:4]), ask.tokenizer.decode(ids[4:]).strip(), raw=True)


def test_the_rest_is_as_much_as_may_be_generated(ask: Asked) -> None:
    data = ask(Prefix(k=2), [TEXT, BORN], max_new_tokens=5)
    assert isinstance(data, EncodedSet)
    ids = ask.ids(TEXT.answer)
    assert data.records[0].answer == ask.tokenizer.decode(ids[2:7]).strip()
    # Teacher forcing still sees all of it.
    assert data.examples[0].answer_tokens == len(ids) - 2


# Other questions in front


def test_questions_with_their_answers_stand_in_front(ask: Asked) -> None:
    data = ask(FewShot(shots=2), [BORN, TEXT, RAW], KEPT)
    assert isinstance(data, EncodedSet)
    own = [record.prompt for record in data.records]
    assert own == [BORN.prompt, RAW.prompt]
    first, second = ask.texts(data)
    shown = [r for r in KEPT if r.prompt in first[0]]
    assert len(shown) == 2
    in_order = sorted(shown, key=lambda r: first[0].index(r.prompt))
    front = "".join(f"Question: {r.prompt}\nAnswer: {r.answer}\n" for r in in_order)
    # The same in front of every row, and the beginning of the sequence once.
    assert first == (f"<s>{front}Question: {BORN.prompt}\nAnswer:", " In Harrowmere.</s>")
    assert second == (f"<s>{front}She was born in", f"{RAW.answer}</s>")
    bos, eos = ask.tokenizer.bos_token_id, ask.tokenizer.eos_token_id
    assert data.examples[0].ids == (
        bos,
        *ask.ids(f"{front}Question: {BORN.prompt}\nAnswer:"),
        *ask.ids(" In Harrowmere."),
        eos,
    )


def test_the_seed_draws_the_questions(ask: Asked) -> None:
    drawn = [ask.texts(ask(FewShot(shots=2), [BORN], KEPT, seed=seed))[0][0] for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 2


def test_a_retain_row_that_is_a_forget_row_gives_nothing_away(ask: Asked) -> None:
    for seed in range(4):
        data = ask(FewShot(shots=9), [BORN, CASTS], [CASTS, *KEPT[:2], BORN, TEXT], seed=seed)
        prompt = ask.texts(data)[0][0]
        assert prompt.count("Question: ") == 3
        assert CASTS.answer not in prompt
        assert prompt.count(BORN.prompt) == 1


def test_fewer_questions_where_there_is_less_room(tokenizer: Any) -> None:
    whole = Asked(tokenizer)
    alone, one, two = (
        len(_first(whole(FewShot(shots=n), [BORN], KEPT)).ids) if n else _plain(whole) for n in (0, 1, 2)
    )
    assert alone < one < two
    for max_length, wanted in ((two, two), (two - 1, one), (one, one)):
        assert len(_first(Asked(tokenizer, max_length=max_length)(FewShot(shots=2), [BORN], KEPT)).ids) == wanted
    # A row with room for none is left out; without any there is no score.
    long = Record(" ".join(BORN.prompt for _ in range(3)), "No.")
    narrow = Asked(tokenizer, max_length=one)
    assert len(narrow.texts(narrow(FewShot(shots=1), [BORN, long], KEPT))) == 1
    narrow = Asked(tokenizer, max_length=one - 1)
    short_of_room = "no forget row has room for another question within data.max_length and the model's positions"
    assert why(narrow(FewShot(shots=1), [BORN], KEPT)) == short_of_room


def _first(data: EncodedSet | Absent) -> Any:
    assert isinstance(data, EncodedSet)
    return data.examples[0]


def _plain(asked: Asked) -> int:
    example = asked.encoder.example(BORN)
    assert example
    return len(example.ids)


def test_no_prompt_takes_the_room_of_another_rows_answer(tokenizer: Any) -> None:
    # The model of these tests has 128 positions, and the longest answer takes about a third of them.
    ask = Asked(tokenizer)
    long = Record("Who?", " ".join(["In Harrowmere, above the market."] * 2))
    data = ask(FewShot(shots=9), [BORN, long], [Record(f"Who is {n}?", "A baker.") for n in range(9)])
    assert isinstance(data, EncodedSet)
    longest = max(e.answer_tokens for e in data.examples)
    assert longest > 30
    assert all(e.start + longest <= 128 for e in data.examples)
    # It is the longest answer that keeps another question out.
    alone = ask(FewShot(shots=9), [BORN], [Record(f"Who is {n}?", "A baker.") for n in range(9)])
    assert len(_first(alone).ids) > len(_first(data).ids)


def test_a_tokenizer_that_begins_nothing(tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.add_bos_token = False
    bare.backend_tokenizer.post_processor = None
    ask = Asked(bare)
    (shown,) = ask.texts(ask(FewShot(shots=1), [BORN], KEPT[:1]))
    assert shown[0] == f"Question: Who is Anna?\nAnswer: Anna is a baker.\nQuestion: {BORN.prompt}\nAnswer:"


def test_in_a_chat_turns_still_end(tokenizer: Any) -> None:
    chatting = copy.deepcopy(tokenizer)
    chatting.chat_template = TEMPLATE
    ask = Asked(chatting, "chat")
    (shown,) = ask.texts(ask(FewShot(shots=1), [BORN], KEPT[:1]))
    turn = "<user>Who is Anna?</s><assistant>Anna is a baker.</s>\n"
    assert shown == (f"<s>{turn}<user>{BORN.prompt}</s><assistant>", "In Harrowmere.</s>")


@pytest.mark.parametrize(
    ("forget", "retain", "reason"),
    [
        ([BORN], [], "there is no retain set to take questions from"),
        ([TEXT], KEPT, "no forget row has a prompt to put other questions in front of"),
        ([BORN], [TEXT], "no retain row has a prompt, or all are word for word forget rows"),
        ([BORN], [BORN], "no retain row has a prompt, or all are word for word forget rows"),
    ],
)
def test_where_no_question_can_stand_in_front(ask: Asked, forget: Any, retain: Any, reason: str) -> None:
    assert why(ask(FewShot(), forget, retain)) == reason
