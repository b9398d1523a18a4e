"""Models that metrics compare with: scored as if they were the one measured, and refused where that means nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from core.data import Inputs
from core.data.encode import EncodedSet, encode
from core.data.jsonl import read_file
from core.errors import DataError, ModelError, SpecError, Stopped
from core.evaluation.others import check_others, reference_losses, rows_elsewhere, scored_elsewhere
from core.evaluation.rows import RowScore, write_rows
from core.evaluation.score import How, score
from core.events import StopFlag
from core.model import load, save
from core.scratch import train_tokenizer
from core.spec.job import parse
from core.spec.records import Record
from core.tokens import Encoder
from tests import models, tiny
from tests.core.evaluating import changed
from tests.models import Reciter

CPU = torch.device("cpu")
HOW = How(generate=False, moments=False)


@pytest.fixture(scope="module")
def another(unlearnt: Reciter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model, moved a little."""
    return changed(unlearnt.model, tmp_path_factory.mktemp("another") / "model")


@pytest.fixture(scope="module")
def measured(unlearnt: Reciter) -> tuple[Encoder, dict[str, EncodedSet]]:
    """The encoder and the sets of the model measured: forget, retain, and a bare text as holdout."""
    _, tokenizer = load(unlearnt.model, CPU)
    encoder = Encoder(tokenizer, "plain", 64)
    read = {name: read_file(getattr(unlearnt, name), name, None) for name in ("forget", "retain")}
    records = {**read, "holdout": [Record("", "She casts bells of bronze.", raw=True)]}
    return encoder, {name: encode(rows, encoder, name) for name, rows in records.items()}


def in_other_tokens(folder: Path, into: Path) -> Path:
    shutil.copytree(folder, into)
    train_tokenizer(["Of other words altogether."], 300).save_pretrained(into)
    return into


def test_a_retrained_models_rows_are_its_own(
    another: Path, measured: tuple[Encoder, dict[str, EncodedSet]], tmp_path: Path
) -> None:
    encoder, sets = measured
    model, _ = load(another, CPU)
    rows = scored_elsewhere(another, encoder, sets, HOW, CPU, tiny.STOP)
    assert rows.keys() == {"forget", "holdout"}, "retain is compared with nothing"
    for name, own in rows.items():
        wanted = score(model, encoder, sets[name], HOW, stop=tiny.STOP)
        assert [row.nll for row in own] == [row.nll for row in wanted]
        assert [row.perturbed_losses for row in own] == [row.perturbed_losses for row in wanted]
    assert all(row.perturbed_losses for row in rows["forget"])
    # In its own tokens, whatever those of the model measured are, and without that one's system prompt.
    stranger = in_other_tokens(another, tmp_path / "stranger")
    theirs = scored_elsewhere(stranger, encoder, sets, HOW, CPU, tiny.STOP)
    its_own = Encoder(load(stranger, CPU)[1], "plain", 64)
    wanted = score(model, its_own, encode(sets["forget"].records, its_own, "forget"), HOW, stop=tiny.STOP)
    assert [row.nll for row in theirs["forget"]] == [row.nll for row in wanted]
    assert [row.tokens for row in wanted] != [row.tokens for row in rows["forget"]]
    guarded = Encoder(encoder.tokenizer, "plain", 64, "Say nothing.")
    asked = scored_elsewhere(another, guarded, sets, HOW, CPU, tiny.STOP)
    assert [row.nll for row in asked["forget"]] == [row.nll for row in rows["forget"]]


def test_a_reference_is_asked_the_very_ids(another: Path, measured: tuple[Encoder, dict[str, EncodedSet]]) -> None:
    encoder, sets = measured
    found = reference_losses(another, encoder, sets, HOW, CPU, tiny.STOP)
    assert found.keys() == {"forget", "holdout"}
    model, _ = load(another, CPU)
    for name, losses in found.items():
        for loss, example in zip(losses, sets[name].examples, strict=True):
            ids = torch.tensor([example.ids])
            with torch.no_grad():
                log_p = torch.log_softmax(model(ids).logits[0].double(), -1)
            places = range(example.start, len(example.ids) - example.ends)
            wanted = [log_p[at - 1, example.ids[at]].item() for at in places]
            assert loss == pytest.approx(-float(np.mean(wanted)), rel=1e-4)


def test_a_row_of_nothing_but_its_end_has_no_reference_loss(
    another: Path, measured: tuple[Encoder, dict[str, EncodedSet]]
) -> None:
    encoder, sets = measured
    (example, *_) = sets["forget"].examples
    end = type(example)((*example.prompt, encoder.tokenizer.eos_token_id), example.start, True)
    bare = {"forget": EncodedSet((Record("Who?", "."),), (end,), ())}
    assert reference_losses(another, encoder, bare, HOW, CPU, tiny.STOP) == {"forget": [None]}


def test_a_reference_of_other_tokens_or_too_few_is_refused(
    another: Path, measured: tuple[Encoder, dict[str, EncodedSet]], tmp_path: Path
) -> None:
    encoder, sets = measured
    stranger = in_other_tokens(another, tmp_path / "stranger")
    with pytest.raises(SpecError, match="another tokenizer than the model") as caught:
        reference_losses(stranger, encoder, sets, HOW, CPU, tiny.STOP)
    assert (caught.value.param, caught.value.problems[0].value) == ("evaluation.reference", str(stranger))
    config = GPT2Config(vocab_size=len(encoder.tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=24)
    config.bos_token_id = config.eos_token_id = 0
    short = tiny.shaken(AutoModelForCausalLM.from_config(config), 0)
    save(short, encoder.tokenizer, tmp_path / "short")
    longest = max(len(example.ids) for example in sets["forget"].examples)
    said = rf"takes 24 tokens, and a row of forget has {longest}; lower data\.max_length"
    with pytest.raises(SpecError, match=said) as caught:
        reference_losses(tmp_path / "short", encoder, sets, HOW, CPU, tiny.STOP)
    assert caught.value.param == "evaluation.reference"


def test_a_damaged_model_is_told_by_the_field_that_names_it(
    another: Path, measured: tuple[Encoder, dict[str, EncodedSet]], tmp_path: Path
) -> None:
    encoder, sets = measured
    damaged = Path(shutil.copytree(another, tmp_path / "damaged"))
    (damaged / "model.safetensors").write_bytes(b"nothing")
    for compare, field in (
        (scored_elsewhere, "evaluation.retrained.model"),
        (reference_losses, "evaluation.reference"),
    ):
        with pytest.raises(ModelError, match=rf"^{field}: .* cannot be loaded") as caught:
            compare(damaged, encoder, sets, HOW, CPU, tiny.STOP)
        assert caught.value.param == field


def test_a_stop_is_heeded(another: Path, measured: tuple[Encoder, dict[str, EncodedSet]]) -> None:
    stop = StopFlag()
    stop.set()
    for compare in (scored_elsewhere, reference_losses):
        with pytest.raises(Stopped):
            compare(another, *measured, HOW, CPU, stop)


def test_rows_of_other_sets_are_refused_and_those_not_compared_are_not_asked_for(tmp_path: Path) -> None:
    rows = [RowScore(nll=1.0, tokens=2), RowScore(nll=3.0, tokens=4)]
    write_rows(tmp_path / "rows" / "after-forget.parquet", rows, {"set": "forget"})
    for folder in (tmp_path, tmp_path / "rows"):
        found = rows_elsewhere(folder, {"forget": 2, "retain": 7})
        assert [row.nll for row in found["forget"]] == [1, 3]
        assert found.keys() == {"forget"}
    cases: list[tuple[dict[str, int], str]] = [
        ({"forget": 3}, "holds 2 rows of forget, the set 3"),
        ({"forget": 2, "holdout": 5}, "holds no after-holdout.parquet"),
    ]
    for counts, said in cases:
        with pytest.raises(DataError, match=f"^evaluation.retrained.rows: .* {said}") as caught:
            rows_elsewhere(tmp_path, counts)
        assert caught.value.param == "evaluation.retrained.rows"
    (tmp_path / "rows" / "after-forget.parquet").write_text("none")
    with pytest.raises(DataError, match=r"^evaluation.retrained.rows: .* holds no scored rows") as caught:
        rows_elsewhere(tmp_path, {"forget": 2})
    assert caught.value.param == "evaluation.retrained.rows"


def test_what_is_not_there_is_told_before_anything_is_loaded(unlearnt: Reciter, another: Path, tmp_path: Path) -> None:
    def asked(**evaluation: Any) -> None:
        check_others(parse(unlearnt.spec(evaluation=evaluation)), Inputs())

    write_rows(tmp_path / "after-forget.parquet", [RowScore()], {})
    asked()
    asked(retrained={"rows": str(tmp_path)})
    asked(retrained=str(another), reference=str(another))
    with pytest.raises(DataError, match=r"holds no after-forget\.parquet"):
        asked(retrained={"rows": str(tmp_path / "none")})
    with pytest.raises(ModelError, match=r"^evaluation.retrained.model: There is no folder .*none"):
        asked(retrained=str(tmp_path / "none"))
    with pytest.raises(ModelError, match=r"^evaluation.reference: There is no folder .*none"):
        asked(reference=str(tmp_path / "none"))
    with pytest.raises(SpecError, match="known to the service only"):
        asked(retrained="mdl_0123456789")
    holdout = models.write_lines(tmp_path / "holdout.jsonl", models.people(1, 5))
    with_holdout = json.loads(json.dumps(unlearnt.spec(evaluation={"retrained": {"rows": str(tmp_path)}})))
    with_holdout["data"]["holdout"] = {"source": "jsonl", "path": str(holdout)}
    with pytest.raises(DataError, match=r"holds no after-holdout\.parquet"):
        check_others(parse(with_holdout), Inputs())
