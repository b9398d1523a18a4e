"""Passages gone on with: cut where they should be, compared with how they go on, and recited by a model that knows."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from tokenizers import processors
from transformers import AutoModelForCausalLM, GPT2Config

from core.data.encode import EncodedSet, encode
from core.errors import Stopped
from core.evaluation import Evidence, measured
from core.evaluation.continuations import continued, whole
from core.evaluation.score import How
from core.events import StopFlag
from core.forward import collate, head, hidden_states
from core.report.schema import Absent, Measured
from core.scratch import train_tokenizer
from core.spec.records import Record
from core.tokens import Encoder
from tests import tiny

HOW = How(max_new_tokens=12)
_PARTS = [
    ("The ferryman", "A clockmaker", "Her sister", "The miller", "An old pilot", "The schoolmaster"),
    ("counted", "mended", "carried", "painted", "remembered", "sold", "hid", "followed"),
    ("seven lanterns", "the green boat", "a map of the marsh", "two bells", "the salt ledger", "an empty cage"),
    ("before dawn", "under the bridge", "at the turn of the tide", "in the loft", "behind the chapel"),
]


def passage(seed: int, sentences: int) -> str:
    """Sentences about nothing, in an order that nobody can guess."""
    rng = random.Random(seed)
    return " ".join(" ".join(rng.choice(part) for part in _PARTS) + "." for _ in range(sentences))


@pytest.fixture(scope="module")
def words() -> Any:
    """A tokenizer of these passages, which puts a beginning of sequence before a text."""
    return train_tokenizer([passage(seed, 40) for seed in range(4)], 420)


def roomy(tokenizer: Any, **size: int) -> Any:
    """A random Llama with positions enough."""
    model = tiny.llama(vocab=len(tokenizer), **size)
    model.config.max_position_embeddings = 1024
    return model


def encoded(texts: Sequence[Record | str], encoder: Encoder) -> EncodedSet:
    records = [Record("", text, raw=True) if isinstance(text, str) else text for text in texts]
    return encode(records, encoder, "seen")


class Asked:
    """The prompts that a model is given."""

    def __init__(self, model: Any) -> None:
        self.prompts: list[list[int]] = []
        model.get_input_embeddings().register_forward_pre_hook(self._look)

    def _look(self, _module: Any, inputs: Any) -> None:
        if inputs[0].shape[1] >= 100:
            self.prompts += inputs[0].tolist()


def test_a_prompt_is_the_first_tokens_of_the_passage(words: Any) -> None:
    model, encoder = roomy(words), Encoder(words, "plain", 1024)
    text = passage(7, 60)
    ids = words(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > 320
    asked = Asked(model)
    (row,) = continued(model, encoder, encoded([text], encoder), HOW, stop=tiny.STOP)
    assert [words.bos_token_id, *ids[:100]] in asked.prompts
    assert [words.bos_token_id, *ids[:300]] in asked.prompts
    assert set(row.continued) == {"rouge_l_100", "rouge_l_300"}
    assert set(row.bleu) == {"100", "300"}
    # What is to come is so many tokens as may be written; sacrebleu counts words and full stops.
    for length in (100, 300):
        rest = words.decode(ids[length : length + 12]).strip()
        assert row.bleu[str(length)][-1] == BLEU().corpus_score(["a"], [[rest]]).ref_len
    assert (row.tokens, row.generated) == (0, None), "of a passage nothing else is measured"


def test_a_tokenizer_without_a_beginning_of_sequence(words: Any) -> None:
    bare = train_tokenizer([passage(seed, 40) for seed in range(4)], 420)
    bare.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    model, encoder = roomy(bare), Encoder(bare, "plain", 512)
    text = passage(7, 40)
    asked = Asked(model)
    continued(model, encoder, encoded([text], encoder), HOW, stop=tiny.STOP)
    assert bare(text)["input_ids"][:100] in asked.prompts
    assert words(text)["input_ids"][0] == words.bos_token_id != bare(text)["input_ids"][0]


def test_a_system_prompt_goes_before_the_passage(words: Any) -> None:
    model = roomy(words)
    plain, guarded = Encoder(words, "plain", 512), Encoder(words, "plain", 512, "Hide what you know.")
    text = passage(7, 30)
    asked = Asked(model)
    continued(model, guarded, encoded([text], plain), HOW, stop=tiny.STOP)
    guard = words("Hide what you know.\n\n")["input_ids"]
    first = words(text, add_special_tokens=False)["input_ids"][:100]
    assert [*guard, *first] in asked.prompts


def test_passages_that_end_before_have_neither(words: Any) -> None:
    model, encoder = roomy(words), Encoder(words, "plain", 512)
    ids = words(passage(3, 60), add_special_tokens=False)["input_ids"]
    texts = [words.decode(ids[:n]) for n in (40, 100, 101, 250, 300, 330)]
    assert [len(words(text, add_special_tokens=False)["input_ids"]) for text in texts] == [40, 100, 101, 250, 300, 330]
    rows = continued(model, encoder, encoded(texts, encoder), HOW, stop=tiny.STOP)
    assert [sorted(map(int, row.bleu)) for row in rows] == [[], [], [100], [100], [100], [100, 300]]
    found = measured(Evidence({"seen": rows}), 100)
    assert [m.rows for m in found.values() if isinstance(m, Measured)] == [4, 4, 1, 1]
    short = measured(Evidence({"seen": rows[:2]}), 100)
    assert all(isinstance(m, Absent) and "no passage is long enough" in m.absent for m in short.values())


def test_what_the_model_has_no_room_for_is_not_held_against_it(words: Any) -> None:
    config = GPT2Config(vocab_size=len(words), n_embd=32, n_layer=1, n_head=2, n_positions=106)
    model = tiny.shaken(AutoModelForCausalLM.from_config(config), 0)
    encoder = Encoder(words, "plain", 106)
    text = passage(7, 60)
    ids = words(text, add_special_tokens=False)["input_ids"]
    (row, *_) = continued(model, encoder, EncodedSet((Record("", text, raw=True),), (), ()), HOW, stop=tiny.STOP)
    # One position is the beginning of sequence's, 100 are the prompt's; after 300 tokens nothing could be written.
    rest = words.decode(ids[100:105]).strip()
    assert row.bleu.keys() == {"100"}
    assert row.bleu["100"][-1] == BLEU().corpus_score(["a"], [[rest]]).ref_len


def test_records_become_passages_as_they_are_trained_on() -> None:
    records = [
        Record("", "A text.", raw=True),
        Record("Once upon", " a time.", raw=True),
        Record("Once up", "on a time.", raw=True),
        Record("Who?", "She."),
        Record("Who? ", "She."),
        Record("Who?", "\nShe."),
    ]
    assert whole(records) == [
        "A text.",
        "Once upon a time.",
        "Once upon a time.",
        "Who? She.",
        "Who? She.",
        "Who?\nShe.",
    ]


def test_a_prompt_with_its_response_is_the_passage_that_they_make(words: Any) -> None:
    model, encoder = roomy(words), Encoder(words, "plain", 512)
    text = passage(5, 30)
    cut = text.index(" ", 60)
    asked = Asked(model)
    halves = encoded([Record(text[:cut], text[cut:], raw=True)], encoder)
    one = continued(model, encoder, halves, HOW, stop=tiny.STOP)
    first = [*asked.prompts]
    other = continued(model, encoder, encoded([text], encoder), HOW, stop=tiny.STOP)
    assert asked.prompts == first * 2
    assert (one[0].bleu, one[0].continued) == (other[0].bleu, other[0].continued)


KNOWN, UNKNOWN = passage(11, 36), passage(12, 36)


@pytest.fixture(scope="module")
def taught(words: Any) -> Any:
    """A small Llama that knows one passage of some 340 tokens by heart."""
    model = roomy(words, hidden=64)
    encoder = Encoder(words, "plain", 512)
    data = encoded([KNOWN], encoder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(150):
        batch = collate(model, data.examples)
        loss = torch.nn.functional.cross_entropy(head(model, hidden_states(model, batch)), batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if float(loss.detach()) < 0.02:
            break
    assert float(loss.detach()) < 0.05
    return model


def test_a_model_that_knows_a_passage_recites_it(taught: Any, words: Any) -> None:
    encoder = Encoder(words, "plain", 512)
    data = encoded([KNOWN, UNKNOWN], encoder)
    rows = continued(taught, encoder, data, HOW, stop=tiny.STOP)
    known, unknown = rows
    assert known.continued["rouge_l_100"] == known.continued["rouge_l_300"] == 1
    assert unknown.continued["rouge_l_100"] < 0.8
    recited, other = (measured(Evidence({"seen": [row]}), 100) for row in rows)
    assert recited["seen.bleu_100"] == Measured(value=1, rows=1, low=None, high=None)
    strange = other["seen.bleu_100"]
    assert isinstance(strange, Measured)
    assert strange.value < 0.5


def test_the_numbers_are_sacrebleus_and_rouge_scores_of_what_was_written(taught: Any, words: Any) -> None:
    encoder = Encoder(words, "plain", 512)
    ids = words(UNKNOWN, add_special_tokens=False)["input_ids"]
    (row,) = continued(taught, encoder, encoded([UNKNOWN], encoder), HOW, stop=tiny.STOP)
    prompt = torch.tensor([[words.bos_token_id, *ids[:100]]])
    with torch.no_grad():
        for _ in range(12):
            prompt = torch.cat([prompt, taught(prompt).logits[:, -1:].argmax(-1)], 1)
    said, rest = (words.decode(part).strip() for part in (prompt[0, 101:], ids[100:112]))
    assert said != rest
    found = BLEU(effective_order=True).corpus_score([said], [[rest]])
    assert row.bleu["100"] == [*found.counts, *found.totals, found.sys_len, found.ref_len]
    assert sum(row.bleu["100"][:4]) > 0
    wanted = RougeScorer(["rougeL"], use_stemmer=True).score(rest, said)["rougeL"]
    assert row.continued["rouge_l_100"] == wanted.recall


def test_batches_and_precision_change_no_text(taught: Any, words: Any) -> None:
    encoder = Encoder(words, "plain", 512)
    data = encoded([KNOWN, UNKNOWN, passage(13, 14), passage(14, 20)], encoder)
    done: list[int] = []

    def scores(how: How) -> list[tuple[dict[str, float], dict[str, list[int]]]]:
        rows = continued(taught, encoder, data, how, stop=tiny.STOP, advance=done.append)
        return [(row.continued, row.bleu) for row in rows]

    together = scores(HOW)
    assert sum(done) == sum(len(bleu) for _, bleu in together) == 6
    assert scores(How(1, 12)) == together
    before = {name: p.clone() for name, p in taught.named_parameters()}
    coarse = scores(How(max_new_tokens=12, precision="bf16"))
    assert coarse[0] == together[0]
    assert all(torch.equal(p, before[name]) for name, p in taught.named_parameters())


def test_bf16_is_what_passages_are_written_in_too(taught: Any, words: Any) -> None:
    encoder = Encoder(words, "plain", 512)
    kinds = set()
    hook = taught.model.layers[0].mlp.down_proj.register_forward_hook(lambda _m, _i, out: kinds.add(out.dtype))
    for precision in ("fp32", "bf16"):
        continued(
            taught, encoder, encoded([KNOWN], encoder), How(max_new_tokens=2, precision=precision), stop=tiny.STOP
        )
    hook.remove()
    assert kinds == {torch.float32, torch.bfloat16}


def test_a_stop_is_heeded(words: Any) -> None:
    model, encoder = roomy(words), Encoder(words, "plain", 512)
    stop = StopFlag()
    stop.set()
    with pytest.raises(Stopped):
        continued(model, encoder, encoded([KNOWN], encoder), HOW, stop=stop)
