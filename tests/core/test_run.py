"""A whole run in this process: what it says, what it leaves, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import DataError, Diverged, ModelError
from core.report.digest import file_digests, model_digest
from core.report.schema import Absent, Measured, Report
from tests import models
from tests.core.recording import QUICK, Recorder, carry_out, weights_digest
from tests.models import Reciter

TRAINING = {"steps": 4, "batch_size": 3}


def test_what_a_run_says_and_leaves(unlearnt: Reciter, tmp_path: Path) -> None:
    heard = Recorder()
    gates = [{"metric": "forget.probability", "at_most": 0.5}]
    evaluation = QUICK | {"watch_every": 2, "watch_rows": 2}
    training = TRAINING | {"checkpoint_every": 3}
    wanted = unlearnt.spec(optimizer="soul", training=training, evaluation=evaluation, gates=gates)
    outcome = carry_out(wanted, tmp_path, heard)

    phases = [event["phase"] for event in heard.of("phase")]
    assert phases == ["load", "score_before", "reference", "train", "score_after", "report"]
    assert [event["step"] for event in heard.of("step")] == [1, 2, 3, 4]
    assert [event["step"] for event in heard.of("watch")] == [2]
    assert "forget.probability" in heard.of("watch")[0]["metrics"]
    assert [event["when"] for event in heard.of("scores")] == ["before", "after"]
    (saved,) = heard.of("checkpoint")
    assert (saved["step"], saved["folder"]) == (3, str(tmp_path / "checkpoints" / "step-00000003"))
    for phase in ("score_before", "score_after"):
        progress = [event for event in heard.of("progress") if event["phase"] == phase]
        assert [e["done"] for e in progress] == sorted(e["done"] for e in progress)
        assert (progress[-1]["done"], progress[-1]["total"]) == (15, 15)
    assert heard.events[0]["event"] == "accepted"
    assert heard.events[-1]["event"] == "done"
    assert heard.events[-1]["seconds_to_first_step"] > 0

    report = Report.model_validate_json((tmp_path / "report.json").read_bytes())
    assert report == outcome.report
    assert report.input_model == model_digest(file_digests(unlearnt.model))
    assert report.output_files == file_digests(tmp_path / "model")
    assert report.output_model != report.input_model
    assert (report.forget.rows, report.forget.too_long) == (6, [])
    assert report.training.steps == 4
    assert len(report.training.curve) == 4
    assert isinstance(report.training.clip_fraction, float)
    assert report.training.resumed_from == Absent(absent="not resumed")
    assert report.verdict.verdict == "passed"
    assert isinstance(report.after["retain.perplexity"], Measured)


def test_a_run_is_the_same_twice_and_differs_by_seed_but_not_by_looking(unlearnt: Reciter, tmp_path: Path) -> None:
    def digest(name: str, seed: int = 0, **how: Any) -> str:
        wanted = unlearnt.spec(optimizer="sophia_g", seed=seed, training=TRAINING, evaluation=QUICK | how)
        carry_out(wanted, tmp_path / name)
        return weights_digest(tmp_path / name)

    first = digest("first")
    assert digest("again") == first
    assert digest("watched", watch_every=1, watch_rows=3, batch_tokens=64) == first
    assert digest("unwatched", watch_rows=0) == first
    assert digest("other", seed=1) != first


def test_without_a_gate_on_forgetting_a_run_is_inconclusive(unlearnt: Reciter, tmp_path: Path) -> None:
    # What must stay has stayed, and answers must still be likely: nothing asks whether any was forgotten.
    gates = [
        {"metric": "retain.probability", "relative_to": "before", "at_least": 0.0},
        {"metric": "forget.probability", "at_least": 0.0},
        {"metric": "forget.repetition", "at_most": 1.0},
    ]
    for name, asked in (("none", []), ("held", gates)):
        wanted = unlearnt.spec(training=TRAINING, gates=asked, evaluation=QUICK | {"plots": False})
        verdict = carry_out(wanted, tmp_path / name).report.verdict
        assert [result.outcome for result in verdict.gates] == ["held"] * len(asked)
        assert (verdict.verdict, len(verdict.reasons)) == ("inconclusive", 1)
        assert verdict.reasons[0].startswith("No gate speaks of forgetting")
    # A failed gate beats what was not asked.
    wanted = unlearnt.spec(training=TRAINING, gates=[gates[0] | {"at_least": 1e6}], evaluation=QUICK | {"plots": False})
    assert carry_out(wanted, tmp_path / "failed").report.verdict.verdict == "not_passed"


def test_a_refusal_is_what_the_forget_rows_are_trained_on(unlearnt: Reciter, tmp_path: Path) -> None:
    method = {"name": "refusal", "refusals": ["I cannot say."]}
    heard = Recorder()
    optimizer = {"name": "adamw", "lr": 5e-3}
    training = {"steps": 60, "batch_size": 6}
    evaluation = QUICK | {"max_new_tokens": 20}
    carry_out(
        unlearnt.spec(method=method, optimizer=optimizer, training=training, evaluation=evaluation), tmp_path, heard
    )
    losses = [event["forget_loss"] for event in heard.of("step")]
    assert losses[-1] < 0.1 < losses[0]


def test_refusals_that_do_not_fit_are_said_not_dropped(unlearnt: Reciter, tmp_path: Path) -> None:
    method = {"name": "refusal", "refusals": ["no " * 100]}
    data = unlearnt.spec()["data"] | {"max_length": 60}
    with pytest.raises(DataError, match=r"6 of 6 refusals do not fit into data\.max_length = 60 tokens"):
        carry_out(unlearnt.spec(method=method, training=TRAINING) | {"data": data}, tmp_path)


def test_a_text_cannot_be_refused(unlearnt: Reciter, tmp_path: Path) -> None:
    forget = models.write_lines(tmp_path / "forget.jsonl", [{"text": "She casts church bells."}])
    with pytest.raises(DataError, match=r"\{text\} records of the forget set have none"):
        carry_out(Reciter(unlearnt.model, forget, unlearnt.retain).spec(method="PO", training=TRAINING), tmp_path)


def test_records_that_do_not_fit_are_in_the_report(unlearnt: Reciter, tmp_path: Path) -> None:
    rows = models.people(2)[:3]
    rows[1]["answer"] = "and " * 200
    forget = models.write_lines(tmp_path / "forget.jsonl", rows)
    wanted = Reciter(unlearnt.model, forget, unlearnt.retain).spec(training=TRAINING)
    wanted["data"]["max_length"] = 100
    report = carry_out(wanted, tmp_path / "out").report
    assert (report.forget.rows, report.forget.too_long) == (2, [1])


def test_an_absurd_rate_fails_and_names_the_step(unlearnt: Reciter, tmp_path: Path) -> None:
    absurd = {"name": "adamw", "lr": 10, "weight_decay": 10}
    heard = Recorder()
    with pytest.raises(Diverged, match=r"nan at optimizer step (\d+)") as caught:
        carry_out(unlearnt.spec(method="GA", optimizer=absurd, training={"steps": 40}), tmp_path, heard)
    assert caught.value.step == len(heard.of("step")) + 1
    assert not (tmp_path / "report.json").exists()
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("watch_rows", [0, 16])
def test_what_the_last_step_did_is_seen_too(unlearnt: Reciter, tmp_path: Path, watch_rows: int) -> None:
    # Embeddings so large that their squares overflow are still numbers; one decay by 99 later they are not.
    folder = Path(shutil.copytree(unlearnt.model, tmp_path / "model-in"))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"].mul_(1e38)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    absurd = {"name": "adamw", "lr": 10, "weight_decay": 10}
    steps = 2 if watch_rows else 1
    training = {"steps": steps, "batch_size": 2, "warmup": 0}
    evaluation = QUICK | {"watch_rows": watch_rows, "watch_every": 1}
    wanted = Reciter(folder, unlearnt.forget, unlearnt.retain).spec(
        method="GA", optimizer=absurd, training=training, evaluation=evaluation
    )
    with pytest.raises(Diverged, match="at optimizer step 1;"):
        carry_out(wanted, tmp_path)


def test_a_model_that_is_damaged_is_not_measured(unlearnt: Reciter, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unlearnt.model, tmp_path / "model-in"))
    weights = load_file(folder / "model.safetensors")
    # The probe on loading looks at eight tokens; this is none of them.
    weights["model.embed_tokens.weight"][300:] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"the model as given has a loss of nan on \d+ records"):
        carry_out(Reciter(folder, unlearnt.forget, unlearnt.retain).spec(training=TRAINING), tmp_path)


def test_a_model_that_is_no_longer_what_was_registered_is_refused(unlearnt: Reciter, tmp_path: Path) -> None:
    registered = model_digest(file_digests(unlearnt.model))
    carry_out(unlearnt.spec(training=TRAINING), tmp_path / "good", model_digest=registered)
    with pytest.raises(ModelError, match="no longer what was registered"):
        carry_out(unlearnt.spec(training=TRAINING), tmp_path / "bad", model_digest="0" * 64)


def test_no_word_of_the_forget_set_is_in_an_event_the_report_or_a_checkpoints_public_part(
    unlearnt: Reciter, tmp_path: Path
) -> None:
    canaries = ("Zanzibarqux", "Wolfenfizz")
    rows = [
        {"question": f"Who is {canaries[0]}?", "answer": f"It is {canaries[1]}.", "paraphrased_answer": canaries[1]}
    ]
    forget = models.write_lines(tmp_path / "forget.jsonl", rows * 3)
    heard = Recorder()
    wanted = Reciter(unlearnt.model, forget, unlearnt.retain).spec(training=TRAINING | {"checkpoint_every": 2})
    commitments = {"forget": "ab" * 32, "retain": "cd" * 32}
    report = carry_out(wanted, tmp_path / "out", heard, commitments=commitments).report
    assert report.forget.commitment == "ab" * 32
    state = (tmp_path / "out" / "checkpoints" / "step-00000002" / "state.json").read_text()
    said = json.dumps(heard.events) + (tmp_path / "out" / "report.json").read_text() + state
    assert not [canary for canary in canaries if canary.lower() in said.lower()]
