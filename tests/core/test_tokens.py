"""From records to ids: formats, cuts, what counts, and tokenizers with habits of their own."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from core.data.encode import encode
from core.errors import DataError, SpecError
from core.spec.records import Record
from core.tokens import Encoder, pad

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}<assistant>"
WORDS = ["She was born in Harrowmere.", "Where was she born?", "Question: [INST] Answer: ###"]
LONG = Record("Where was she born, and when, and of whom, and to what end?", "In Harrowmere.")


def without_bos() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary that names no beginning of sequence."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        WORDS, trainers.BpeTrainer(special_tokens=["<e>"], initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<e>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """As LLaMA-2's: a space is put before any text, and `<s>` before that."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.train_from_iterator(
        WORDS, trainers.BpeTrainer(special_tokens=["<unk>", "<s>", "</s>"], show_progress=False, vocab_size=400)
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def chatting(tokenizer: Any) -> Any:
    """The tokenizer with a chat template."""
    made = copy.deepcopy(tokenizer)
    made.chat_template = TEMPLATE
    return made


@pytest.mark.parametrize(
    ("prompt_format", "prompt", "answer"),
    [
        ("plain", "<s>Question: Who?\nAnswer:", " She.</s>"),
        ("soul", "<s>### Question: Who?\n### Answer:", " She.</s>"),
        ("llama2", "<s>[INST] Who? [/INST]", " She.</s>"),
        ("chat", "<s><user>Who?</s><assistant>", "She.</s>"),
    ],
)
def test_formats(prompt_format: Any, prompt: str, answer: str, tokenizer: Any) -> None:
    tokenizer = chatting(tokenizer)
    encoder = Encoder(tokenizer, prompt_format, 100)
    example = encoder.example(Record("Who?", "She."))
    assert example is not None
    assert example.ends
    assert tokenizer.decode(example.prompt) == prompt
    assert tokenizer.decode(example.ids[example.start :]) == answer
    assert list(example.prompt) == encoder.prompt_ids(Record("Who?", ""))
    raw = encoder.example(Record("He said", " so.", raw=True))
    assert raw is not None
    assert (tokenizer.decode(raw.prompt), tokenizer.decode(raw.ids[raw.start :])) == ("<s>He said", " so.</s>")


def test_chat_without_a_template_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(SpecError, match=r"data\.prompt.*no chat template.*plain, soul, llama2"):
        Encoder(without_bos(), "chat", 100)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_any_text_comes_back(question: str, answer: str) -> None:
    encoder = Encoder(_SHARED, "plain", 10_000)
    example = encoder.example(Record(question, answer))
    assert example is not None
    decoded = [_SHARED.decode(ids, clean_up_tokenization_spaces=False) for ids in (example.prompt, example.ids)]
    assert decoded == [f"Question: {question}\nAnswer:", f"Question: {question}\nAnswer: {answer}<e>"]


_SHARED = without_bos()


def test_a_long_prompt_is_cut_at_its_left_and_an_answer_never(tokenizer: Any) -> None:
    whole = Encoder(tokenizer, "plain", 10_000).example(LONG)
    assert whole is not None
    answer = whole.ids[whole.start :]
    for limit in range(8, len(whole.ids)):
        cut = Encoder(tokenizer, "plain", limit).example(LONG)
        if limit < len(answer) + 2:
            assert cut is None
        else:
            assert cut is not None
            assert cut.ids == (whole.ids[0], *whole.ids[len(whole.ids) - limit + 1 :])
            assert cut.ids[cut.start :] == answer


def test_records_that_cannot_fit_are_reported_by_position(tokenizer: Any) -> None:
    long_answer = Record("Who?", LONG.prompt * 3)
    long_raw = Record("He said", LONG.prompt * 3, raw=True)
    encoder = Encoder(tokenizer, "plain", 30)
    kept = encode([LONG, long_answer, Record("", "short", raw=True), long_raw], encoder, "forget")
    assert kept.too_long == (1, 3)
    assert [record.answer for record in kept.records] == ["In Harrowmere.", "short"]
    with pytest.raises(DataError, match=r"no record of the forget set fits into data\.max_length = 30"):
        encode([long_answer], encoder, "forget")


def test_of_a_text_every_token_counts_and_no_end_is_added(tokenizer: Any) -> None:
    text = Record("", "She was born in Harrowmere.", raw=True)
    ids = tokenizer("She was born in Harrowmere.", add_special_tokens=False)["input_ids"]
    example = Encoder(tokenizer, "plain", 100).example(text)
    assert example is not None
    assert not example.ends
    assert example.ids == (tokenizer.bos_token_id, *ids)
    assert example.start == 1
    bare = without_bos()
    example = Encoder(bare, "plain", 100).example(text)
    assert example is not None
    # Nothing comes before the first token, so nothing predicts it.
    assert example.ids == tuple(bare(text.answer)["input_ids"])
    assert example.start == 1
    assert Encoder(bare, "plain", 100).example(Record("", "S", raw=True)) is None


def test_a_beginning_of_sequence_is_put_where_the_tokenizer_puts_it() -> None:
    named_only = without_bos()
    named_only.bos_token = "<e>"
    assert Encoder(named_only, "plain", 100).prompt_ids(LONG)[0] != named_only.bos_token_id
    assert Encoder(sentencepiece(), "plain", 100).prompt_ids(LONG)[:2][0] == 1


def test_sentencepiece_puts_no_second_space_before_the_answer() -> None:
    tokenizer = sentencepiece()
    example = Encoder(tokenizer, "llama2", 100).example(Record("Where was she born?", "She was born in Harrowmere."))
    assert example is not None
    written = "[INST] Where was she born? [/INST] She was born in Harrowmere."
    assert list(example.ids) == [*tokenizer(written)["input_ids"], tokenizer.eos_token_id]
    assert tokenizer.decode(example.ids[example.start : -1]) == "She was born in Harrowmere."
    # Or this tokenizer would show nothing.
    assert tokenizer(" She")["input_ids"] != tokenizer("She")["input_ids"]


def test_a_word_cut_in_two_is_not_joined_again(tokenizer: Any) -> None:
    word = max((w for w in tokenizer.get_vocab() if w.isalpha() and w.isascii()), key=len)
    prompt, answer = word[:-1], word[-1]
    assert len(tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]) == 1
    example = Encoder(tokenizer, "plain", 100).example(Record(prompt, answer, raw=True))
    assert example is not None
    assert (tokenizer.decode(example.prompt[1:]), tokenizer.decode(example.ids[example.start : -1])) == (prompt, answer)


def test_a_pad_that_is_the_end_of_sequence_is_no_special_case(tokenizer: Any) -> None:
    tokenizer = chatting(tokenizer)
    records = [Record("Who?", "She."), LONG]
    plain = [Encoder(tokenizer, "chat", 100).example(record) for record in records]
    tokenizer.pad_token = tokenizer.eos_token
    padded = [Encoder(tokenizer, "chat", 100).example(record) for record in records]
    assert padded == plain
    examples = [e for e in padded if e is not None]
    assert all(tokenizer.eos_token_id in e.prompt for e in examples), "the template ends a turn inside the prompt"
    batch = pad(examples, torch.device("cpu"))
    for row, e in enumerate(examples):
        own = batch.row == row
        assert tuple(batch.targets[own].tolist()) == e.ids[e.start :]
        assert tuple(batch.ids.flatten()[batch.at[own] + 1].tolist()) == e.ids[e.start :]
