"""What judges say goes to the rows that it is of, and a judge that cannot be had is told by its field."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification, BertModel

from core.data.encode import EncodedSet
from core.errors import SpecError
from core.evaluation import Evidence, measured, toxicity
from core.evaluation.judged import judge_answers, judge_toxicity
from core.evaluation.rows import RowScore
from core.report.schema import Absent, Measured
from core.spec.evaluation import Beside, Classifier
from core.spec.records import Record
from core.tokens import Example
from tests.core.test_judges import KIND, RUDE, tiny_bert, words
from tests.models import people
from tests.tiny import STOP

CPU = torch.device("cpu")
ID = Example((1, 2), 1, False)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Beside:
    """A random BERT of the people's words, with mean pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    inner, folder = (tmp_path_factory.mktemp(name) for name in ("bert", "embedder"))
    words([text for row in people(2) for text in (row["answer"], *row["perturbed_answer"])], inner)
    torch.manual_seed(0)
    BertModel(tiny_bert(len(AutoTokenizer.from_pretrained(inner)), initializer_range=0.3)).save_pretrained(inner)
    transformer = Transformer(str(inner))
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save_pretrained(
        str(folder), create_model_card=False
    )
    return Beside(path=str(folder))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A random classifier of the words: its scores are of no use, and differ."""
    folder = tmp_path_factory.mktemp("classifier")
    words([*RUDE, *KIND], folder)
    torch.manual_seed(0)
    config = tiny_bert(len(AutoTokenizer.from_pretrained(folder)), initializer_range=0.5)
    config.id2label, config.problem_type = {0: "kind", 1: "toxic"}, "multi_label_classification"
    BertForSequenceClassification(config).save_pretrained(folder)
    return Classifier(path=str(folder))


def the_set(records: list[Record]) -> EncodedSet:
    return EncodedSet(tuple(records), (ID,) * len(records), ())


def records(first: int, perturbed: bool = True) -> list[Record]:
    rows = people(2)[first : first + 3]
    return [
        Record(r["question"], r["answer"], perturbed_answers=tuple(r["perturbed_answer"][: 2 * perturbed]))
        for r in rows
    ]


def answered(of: list[Record], right: list[bool | None]) -> list[RowScore]:
    """Texts that repeat the answer, or a perturbed one, or none."""
    said: dict[bool | None, Sequence[str | None]] = {
        True: [r.answer for r in of],
        False: [r.perturbed_answers[0] for r in of],
        None: [None] * len(of),
    }
    return [RowScore(generated=said[how][i]) for i, how in enumerate(right)]


def test_each_text_is_judged_by_its_own_record(embedder: Beside) -> None:
    forget, facts, plain = records(0), records(3), records(6, perturbed=False)
    sets = {"forget": the_set(forget), "world_facts": the_set(facts), "retain": the_set(plain)}
    wanted: dict[str, list[bool | None]] = {"forget": [True, None, False], "world_facts": [False, True, None]}
    rows: dict[str, Any] = {name: answered([*sets[name].records], right) for name, right in wanted.items()}
    rows["retain"] = [RowScore(generated=record.answer) for record in plain]
    rows["holdout"] = [RowScore(generated="She casts bells.")]
    assert judge_answers(embedder, rows, sets, CPU, STOP) == {}
    assert {name: [row.nearest for row in rows[name]] for name in wanted} == wanted
    assert [row.nearest for row in rows["retain"]] == [None] * 3, (
        "without a wrong answer there is nothing to be nearer to"
    )
    assert rows["holdout"][0].nearest is None
    found = measured(Evidence(rows), 100)
    accuracy = found["forget.embedding_accuracy"]
    assert isinstance(accuracy, Measured)
    assert (accuracy.value, accuracy.rows) == (0.5, 2)
    assert isinstance(found["retain.embedding_accuracy"], Absent)


def test_toxicity_is_of_the_prompts_answers_alone(classifier: Classifier) -> None:
    rows = {
        "harm_prompts": [RowScore(generated=RUDE[0]), RowScore(), RowScore(generated=KIND[1])],
        "toxic_prompts": [RowScore(generated=KIND[0])],
        "forget": [RowScore(generated=RUDE[1])],
    }
    assert judge_toxicity(classifier, rows, CPU, STOP) == {}
    one, other, last = toxicity.scores(classifier, [RUDE[0], KIND[1], KIND[0]], CPU, STOP)
    assert len({one, other, last}) == 3
    assert [row.toxicity for row in rows["harm_prompts"]] == [one, None, other]
    assert rows["toxic_prompts"][0].toxicity == last
    assert rows["forget"][0].toxicity is None


def test_a_judge_that_cannot_be_had_says_why_and_a_wrong_label_is_a_wrong_request(
    classifier: Classifier, tmp_path: Path
) -> None:
    nowhere = str(tmp_path / "nowhere")
    forget = records(0)
    rows = {"forget": answered(forget, [True] * 3), "harm_prompts": [RowScore(generated=RUDE[0])]}
    missing = judge_answers(Beside(path=nowhere), rows, {"forget": the_set(forget)}, CPU, STOP)
    missing |= judge_toxicity(Classifier(path=nowhere), rows, CPU, STOP)
    assert missing == dict.fromkeys(("embedder", "classifier"), f"there is no folder {nowhere}")
    assert [row.nearest for row in rows["forget"]] == [None] * 3
    found = measured(Evidence(rows, missing=missing), 100)
    for name in ("forget.embedding_accuracy", "harm_prompts.toxic"):
        assert found[name] == Absent(absent=f"there is no folder {nowhere}")
    with pytest.raises(SpecError, match="rude"):
        judge_toxicity(Classifier(path=classifier.path, label="rude"), rows, CPU, STOP)
