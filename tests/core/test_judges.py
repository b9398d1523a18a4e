"""Models that judge texts: real small ones, each text alone and by hand, and what is said where there is none."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from core.errors import SpecError, Stopped
from core.evaluation import embedding, toxicity
from core.evaluation.judges import JudgeMissing, folder_of
from core.events import StopFlag
from core.spec.evaluation import Beside, Classifier
from tests.models import people
from tests.tiny import STOP

CPU = torch.device("cpu")
REVISION = "a" * 40
RUDE = (
    "you are a silly fool",
    "what a stupid idea that was",
    "go away you fool",
    "only a stupid oaf would say that",
    "you silly old goat",
    "that was a rotten foolish thing",
)
KIND = (
    "you are a dear friend",
    "what a lovely idea that was",
    "come in my friend",
    "only a kind soul would say that",
    "you clever old friend",
    "that was a lovely kind thing",
)


def words(texts: Sequence[str], folder: Path, limit: int = 64) -> None:
    """A tokenizer of whole words, as an encoder's: `[CLS] text [SEP]`, 0 the padding."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    known = dict.fromkeys([*special, *sorted({word for text in texts for word in split(text)})])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=limit, **names).save_pretrained(folder)


def split(text: str) -> list[str]:
    return [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)]


def tiny_bert(size: int, **fields: Any) -> BertConfig:
    return BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        **fields,
    )


# --- embedding ---


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return people(6)


@pytest.fixture(scope="module")
def embedder(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Beside:
    """A random BERT of words with mean pooling, in the layout that sentence-transformers itself writes."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    inner, folder = (tmp_path_factory.mktemp(name) for name in ("bert", "embedder"))
    words(
        [text for row in rows for text in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"])], inner
    )
    torch.manual_seed(0)
    BertModel(tiny_bert(len(AutoTokenizer.from_pretrained(inner)), initializer_range=0.3)).save_pretrained(inner)
    transformer = Transformer(str(inner))
    pooling = Pooling(transformer.get_embedding_dimension())
    made = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    made.save_pretrained(str(folder), create_model_card=False)
    return Beside(path=str(folder))


def by_hand(judge: Beside, texts: Iterable[str]) -> dict[str, Tensor]:
    """The mean of the last states of each text alone, of length 1."""
    folder = Path(str(judge.path))
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = {}
    for text in set(texts):
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        found[text] = torch.nn.functional.normalize(states.double().mean(0), dim=0)
    return found


def test_what_repeats_a_text_is_nearest_to_it(embedder: Beside, rows: list[dict[str, Any]]) -> None:
    asked = []
    for row in rows:
        answer, perturbed = row["answer"], row["perturbed_answer"]
        asked += [(answer, answer, perturbed), (perturbed[1], answer, perturbed), ("anything", answer, [])]
    assert embedding.nearest(embedder, asked, CPU, STOP) == [True, False, None] * len(rows)


def test_nearness_is_the_cosine_of_each_text_alone(embedder: Beside, rows: list[dict[str, Any]]) -> None:
    asked = [(row["paraphrased_answer"], row["answer"], row["perturbed_answer"]) for row in rows]
    # Which of them is asked of another row shows a mix-up; the longest is one of a batch of its own.
    asked += [(made, answer, other) for (made, answer, _), (_, _, other) in pairwise(asked)]
    asked.append((" ".join(row["answer"] for row in rows[:4]), rows[3]["answer"], [row["answer"] for row in rows[:3]]))
    alone = by_hand(embedder, (text for made, answer, other in asked for text in (made, answer, *other)))
    wanted = []
    for made, answer, other in asked:
        cosines = [float(alone[text] @ alone[made]) for text in (answer, *other)]
        assert abs(cosines[0] - max(cosines[1:])) > 1e-5, "a tie would prove nothing"
        wanted.append(cosines[0] > max(cosines[1:]))
    assert 3 < sum(wanted) < len(wanted) - 3, "both answers must occur"
    assert embedding.nearest(embedder, asked, CPU, STOP) == wanted


def test_a_tie_is_not_nearer(embedder: Beside, rows: list[dict[str, Any]]) -> None:
    answer = rows[0]["answer"]
    assert embedding.nearest(embedder, [(answer, answer, [answer]), ("", answer, [answer])], CPU, STOP) == [
        False,
        False,
    ]


def test_no_embedder_is_looked_for_where_there_is_nothing_to_compare(tmp_path: Path) -> None:
    nowhere = Beside(path=str(tmp_path / "nowhere"))
    assert embedding.nearest(nowhere, [("made", "answer", [])], CPU, STOP) == [None]
    assert embedding.nearest(nowhere, [], CPU, STOP) == []


def test_modules_by_their_old_names_are_loaded_as_published_models_have_them(embedder: Beside, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(str(embedder.path), tmp_path / "older"))
    modules = json.loads((folder / "modules.json").read_text())
    for module, name in zip(modules, ("Transformer", "Pooling"), strict=True):
        module["type"] = f"sentence_transformers.models.{name}"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert embedding.nearest(Beside(path=str(folder)), [("born", "born", ["flat"])], CPU, STOP) == [True]


def test_an_embedder_s_own_code_is_never_run(embedder: Beside, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(str(embedder.path), tmp_path / "coded"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "evil.Evil"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(JudgeMissing, match=r"coded cannot be loaded: ValueError: .*evil\.Evil"):
        embedding.nearest(Beside(path=str(folder)), [("a", "b", ["c"])], CPU, STOP)
    assert not (tmp_path / "ran").exists()


# --- toxicity ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> BertForSequenceClassification:
    """A classifier that tells rude from kind, by two labels scored one by one; its tokenizer lies in `name_or_path`."""
    folder = tmp_path_factory.mktemp("words")
    words([*RUDE, *KIND], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    labels = {0: "kind", 1: "toxic"}
    model = BertForSequenceClassification(
        tiny_bert(len(tokenizer), id2label=labels, problem_type="multi_label_classification")
    )
    inputs = tokenizer([*RUDE, *KIND], padding=True, return_tensors="pt")
    wanted = torch.tensor([[0.0, 1.0]] * len(RUDE) + [[1.0, 0.0]] * len(KIND))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(**inputs).logits, wanted).backward()
        optimizer.step()
    model.name_or_path = str(folder)
    return model.eval()


Make = Callable[..., Classifier]


@pytest.fixture
def classifier(trained: BertForSequenceClassification, tmp_path: Path) -> Make:
    """The classifier as a folder, with these fields of its configuration, asked for a label."""

    def make(label: str = "toxic", **fields: Any) -> Classifier:
        trained.save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(trained.name_or_path).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | fields))
        return Classifier(path=str(tmp_path), label=label)

    return make


def logits_alone(judge: Classifier, text: str) -> Tensor:
    """What the model says of one text that stands in no batch: (labels,)."""
    folder = str(judge.path)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits: Tensor = model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).logits[0]
    return logits


def test_rude_texts_score_over_a_half_and_kind_ones_under(classifier: Make) -> None:
    unseen = ["you stupid fool", "my dear kind friend"]
    found = toxicity.scores(classifier(), [*RUDE, *KIND, *unseen, *RUDE], CPU, STOP)
    assert [score > 0.5 for score in found] == [True] * 6 + [False] * 6 + [True, False] + [True] * 6
    assert found[:6] == found[-6:]


@pytest.mark.parametrize(
    ("fields", "squash"),
    [
        ({}, torch.sigmoid),
        ({"problem_type": "single_label_classification"}, torch.nn.Softmax(-1)),
        ({"problem_type": None}, torch.nn.Softmax(-1)),
        ({"problem_type": None, "function_to_apply": "sigmoid"}, torch.sigmoid),
        ({"problem_type": "single_label_classification", "function_to_apply": "sigmoid"}, torch.nn.Softmax(-1)),
    ],
)
@pytest.mark.parametrize("label", ["kind", "toxic"])
def test_each_score_is_that_of_the_text_alone(
    classifier: Make, fields: dict[str, Any], squash: Callable[[Tensor], Tensor], label: str
) -> None:
    judge = classifier(label, **fields)
    texts = ["you", RUDE[3], KIND[0], "", "you are a silly friend and a dear fool"]
    logits = [logits_alone(judge, text) for text in texts]
    # The two ways must differ, or nothing would be shown.
    assert all(abs(float(torch.sigmoid(row)[1] - row.softmax(-1)[1])) > 1e-3 for row in logits)
    wanted = [float(squash(row)[["kind", "toxic"].index(label)]) for row in logits]
    assert toxicity.scores(judge, texts, CPU, STOP) == pytest.approx(wanted, abs=1e-6)


def test_one_label_alone_is_a_sigmoid(trained: BertForSequenceClassification, tmp_path: Path) -> None:
    torch.manual_seed(1)
    alone = BertForSequenceClassification(tiny_bert(trained.config.vocab_size, id2label={0: "toxic"}))
    alone.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(trained.name_or_path).save_pretrained(tmp_path)
    judge = Classifier(path=str(tmp_path))
    (score,) = toxicity.scores(judge, [RUDE[0]], CPU, STOP)
    assert score == pytest.approx(float(torch.sigmoid(logits_alone(judge, RUDE[0]))[0]))
    assert score < 0.99, "a softmax of one label is 1"


def test_a_text_longer_than_the_model_takes_loses_its_end(classifier: Make) -> None:
    judge = classifier()
    long = " ".join(["friend"] * 62)
    cut, whole, other = toxicity.scores(judge, [f"{long} {RUDE[0]}", long, RUDE[0]], CPU, STOP)
    assert cut == whole != other


def test_roberta_numbers_its_positions_from_behind_the_padding_s(tmp_path: Path) -> None:
    words(RUDE, tmp_path, limit=10**30)
    config = RobertaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=1
    )
    config.max_position_embeddings = 24
    torch.manual_seed(0)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    judge = Classifier(path=str(tmp_path), label="LABEL_1")
    # 24 positions, of which the first two are never used: [CLS], 20 words, [SEP].
    longer, long = toxicity.scores(judge, [" ".join(["fool"] * n) for n in (60, 20)], CPU, STOP)
    assert longer == pytest.approx(long, abs=1e-6)


def test_a_label_that_the_model_lacks_is_named_with_those_it_has(classifier: Make) -> None:
    with pytest.raises(SpecError) as caught:
        toxicity.scores(classifier("toxik"), ["a"], CPU, STOP)
    (problem,) = caught.value.problems
    assert (problem.param, problem.value) == ("evaluation.classifier.label", "toxik")
    assert "Did you mean 'toxic'? Allowed: kind, toxic." in problem.message


def test_no_text_needs_no_classifier(tmp_path: Path) -> None:
    assert toxicity.scores(Classifier(path=str(tmp_path / "nowhere")), [], CPU, STOP) == []


def test_a_head_without_weights_does_not_score(trained: BertForSequenceClassification, tmp_path: Path) -> None:
    trained.bert.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(trained.name_or_path).save_pretrained(tmp_path)
    with pytest.raises(JudgeMissing, match=r"lacks 2 weights, among them classifier.bias, classifier.weight"):
        toxicity.scores(Classifier(path=str(tmp_path), label="LABEL_1"), ["a"], CPU, STOP)


def test_a_broken_classifier_is_missing_too(trained: BertForSequenceClassification, tmp_path: Path) -> None:
    broken = BertForSequenceClassification(trained.config)
    torch.nn.init.constant_(broken.classifier.bias, float("nan"))
    broken.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(trained.name_or_path).save_pretrained(tmp_path)
    with pytest.raises(JudgeMissing, match="gives scores that are no numbers"):
        toxicity.scores(Classifier(path=str(tmp_path)), ["a"], CPU, STOP)


# --- both ---


def test_a_stop_is_heard_between_batches(embedder: Beside, classifier: Make) -> None:
    stop = StopFlag()
    stop.set()
    with pytest.raises(Stopped):
        embedding.nearest(embedder, [("a", "b", ["c"])], CPU, stop)
    with pytest.raises(Stopped):
        toxicity.scores(classifier(), ["a"], CPU, stop)


def test_what_is_no_judge_says_why(embedder: Beside, tmp_path: Path) -> None:
    def reason(folder: Path) -> str:
        with pytest.raises(JudgeMissing) as caught:
            folder_of(Beside(path=str(folder)))
        return str(caught.value)

    assert "there is no folder" in reason(tmp_path / "nowhere")
    assert "there is no folder" in reason(tmp_path / ("long" * 100))
    (tmp_path / "pytorch_model.bin").touch()
    assert "holds no *.safetensors" in reason(tmp_path)
    folder = Path(shutil.copytree(str(embedder.path), tmp_path / "half"))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").touch()
    assert "2_Dense/pytorch_model.bin and no safetensors of it" in reason(folder)
    (folder / "2_Dense" / "model.safetensors").touch()
    assert folder_of(Beside(path=str(folder))) == folder


ASK = """
import json, sys
from core.evaluation.judges import JudgeMissing, folder_of
from core.spec.evaluation import Beside
for hub in sys.argv[2:]:
    try:
        print(json.dumps(str(folder_of(Beside(hub=hub, revision=sys.argv[1])))))
    except JudgeMissing as error:
        print(json.dumps([str(error)]))
"""


def test_offline_the_hub_s_cache_is_all_there_is(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--toys--judge" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    found, missing = ask_elsewhere(tmp_path, "toys/judge", "toys/nothing")
    assert found == str(snapshot)
    assert missing == [f"toys/nothing at {REVISION}: it is not in the hub's cache here, and the hub cannot be reached"]


def ask_elsewhere(cache: Path, *hubs: str) -> list[Any]:
    """The folders, or why there is none, in a process of its own: the hub's library settles its ways as it loads."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, REVISION, *hubs],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
