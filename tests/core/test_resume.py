"""However often a run is interrupted, and wherever, it ends with the weights of an undisturbed one, bit for bit."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from core import checkpoint
from core.errors import CheckpointError, Stopped
from core.events import StopFlag
from core.report.schema import Report
from tests.core.recording import QUICK, Recorder, carry_out, interrupted, weights_digest
from tests.models import Reciter

OPTIMIZERS: dict[str, Any] = {
    "sophia_g": {"name": "sophia_g", "lr": 1e-3, "every": 3, "curvature_on": "both"},
    "soul": {"name": "soul", "lr": 1e-3},
    "adamw": {"name": "adamw", "lr": 1e-3},
}
METHODS: dict[str, Any] = {
    "npo+nll": {"name": "npo", "retain": "nll"},
    "npo+kl": {"name": "npo", "retain": "kl"},
    "refusal": {"name": "refusal", "retain": "nll"},
}
TRAINING = {"steps": 7, "batch_size": 4, "micro_batch_tokens": 100}
# What is drawn takes longer than these runs, and is the same for the same report.
EVALUATION = QUICK | {"plots": False}


def wanted(unlearnt: Reciter, method: str, optimizer: str, **fields: Any) -> dict[str, Any]:
    given = {"method": METHODS[method], "optimizer": OPTIMIZERS[optimizer], "training": TRAINING}
    return unlearnt.spec(**given, **{"evaluation": EVALUATION, **fields})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_interrupted_at_several_steps(optimizer: str, method: str, unlearnt: Reciter, tmp_path: Path) -> None:
    spec = wanted(unlearnt, method, optimizer)
    undisturbed = carry_out(spec, tmp_path / "whole").report
    out = tmp_path / "parts"
    for step in (1, 3, 4):
        heard = interrupted(spec, out, step)
        assert [event["step"] for event in heard.of("checkpoint")] == [step]
    heard = Recorder()
    resumed = carry_out(spec, out, heard).report
    assert heard.of("accepted")[0]["resumed_from"] == resumed.training.resumed_from == 4
    assert "score_before" not in [event["phase"] for event in heard.of("phase")], "kept, not measured again"
    assert weights_digest(out) == weights_digest(tmp_path / "whole")
    assert resumed.output_model == undisturbed.output_model
    assert (resumed.before, resumed.after) == (undisturbed.before, undisturbed.after)
    assert resumed.training.curve == undisturbed.training.curve


class StopAt(StopFlag):
    """Asked for the n-th time, says stop: every boundary between two batches can be met so."""

    def __init__(self, asked: int) -> None:
        super().__init__()
        self.left = asked

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_stopped_at_any_boundary(unlearnt: Reciter, tmp_path: Path) -> None:
    evaluation = EVALUATION | {"watch_every": 2, "watch_rows": 2, "batch_tokens": 256}
    spec = wanted(unlearnt, "npo+kl", "sophia_g", evaluation=evaluation)
    counted = StopAt(1 << 30)
    carry_out(spec, tmp_path / "whole", stop=counted)
    boundaries = (1 << 30) - counted.left
    stopped_in: set[str] = set()
    for n in range(1, boundaries + 1, boundaries // 16):
        out, heard = tmp_path / str(n), Recorder()
        with pytest.raises(Stopped):
            carry_out(spec, out, heard, stop=StopAt(n))
        phase = heard.of("phase")[-1]["phase"]
        stopped_in.add(phase)
        assert len(heard.of("checkpoint")) == (phase in ("train", "score_after"))
        carry_out(spec, out)
        assert weights_digest(out) == weights_digest(tmp_path / "whole"), f"stopped at boundary {n}, in {phase}"
        shutil.rmtree(out)
    assert stopped_in >= {"score_before", "train", "score_after"}


class Asked(StopFlag):
    """Never says stop; notes, each time it is asked, how many events there were before."""

    def __init__(self, heard: Recorder) -> None:
        super().__init__()
        self.heard = heard
        self.after: list[int] = []

    def __bool__(self) -> bool:
        self.after.append(len(self.heard.events))
        return False

    def kinds(self) -> dict[tuple[str, str, str], list[int]]:
        """Which times it was asked in each phase, between which two kinds of events."""
        found: dict[tuple[str, str, str], list[int]] = {}
        for time, events in enumerate(self.after, start=1):
            phase = [e["phase"] for e in self.heard.events[:events] if e["event"] == "phase"][-1]
            last, following = (self.heard.events[i]["event"] for i in (events - 1, events))
            found.setdefault((phase, last, following), []).append(time)
        return found


# Ends early; and goes to its end, where an earlier step is delivered.
CHOOSING: dict[str, tuple[str, float]] = {"early": ("GradDiff", 0.5), "late": ("GA", 0.0)}


@pytest.mark.parametrize("ending", CHOOSING)
def test_stopped_while_choosing_what_to_deliver(ending: str, unlearnt: Reciter, tmp_path: Path) -> None:
    method, at_most = CHOOSING[ending]
    gates = [
        {"metric": "forget.probability", "relative_to": "before", "at_most": at_most},
        {"metric": "retain.probability", "relative_to": "before", "at_least": 0.9},
        {"metric": "forget.rouge_l", "at_most": 0.9},
    ]
    spec = unlearnt.spec(
        method=method,
        optimizer={"name": "adamw", "lr": 2e-3},
        training=TRAINING | {"stop_when": {"every": 1}},
        evaluation=EVALUATION | {"batch_tokens": 256},
        gates=gates,
    )
    heard = Recorder()
    asked = Asked(heard)
    undisturbed = carry_out(spec, tmp_path / "whole", heard, stop=asked).report.training
    assert undisturbed.stopped_early == (ending == "early")
    assert (undisturbed.delivered_step == undisturbed.steps) == (ending == "early")

    kinds = {kind: times for kind, times in asked.kinds().items() if kind[0] in ("train", "score_after")}
    # In a look (forced, or in its texts), in training, and when all is chosen.
    assert kinds.keys() >= {
        ("train", "step", "watch"),
        ("train", "watch", "step"),
        ("score_after", "progress", "progress"),
    }
    for kind, times in kinds.items():
        time = times[len(times) // 2]
        out = tmp_path / str(time)
        with pytest.raises(Stopped):
            carry_out(spec, out, stop=StopAt(time))
        # Another machine would have the checkpoint alone.
        for folder in ("best", "rows"):
            shutil.rmtree(out / folder, ignore_errors=True)
        done = carry_out(spec, out).report.training
        assert weights_digest(out) == weights_digest(tmp_path / "whole"), f"stopped at boundary {time}, {kind}"
        assert (done.looks, done.curve) == (undisturbed.looks, undisturbed.curve)
        assert (done.delivered_step, done.stopped_early) == (undisturbed.delivered_step, undisturbed.stopped_early)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(unlearnt: Reciter, tmp_path: Path) -> None:
    spec = wanted(unlearnt, "npo+nll", "adamw")
    whole, out = tmp_path / "whole", tmp_path / "out"
    carry_out(spec, whole)
    for step in (2, 5):
        interrupted(spec, out, step)
    weights = out / "checkpoints" / "step-00000005" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    heard = Recorder()
    carry_out(spec, out, heard)
    assert heard.of("accepted")[0]["resumed_from"] == 2
    assert weights_digest(out) == weights_digest(whole)


def test_another_spec_other_data_or_another_model_is_refused(unlearnt: Reciter, tmp_path: Path) -> None:
    sets = tmp_path / "sets"
    sets.mkdir()
    own = Reciter(
        Path(shutil.copytree(unlearnt.model, sets / "model")),
        Path(shutil.copy(unlearnt.forget, sets)),
        Path(shutil.copy(unlearnt.retain, sets)),
    )
    spec, out = wanted(own, "npo+nll", "adamw"), tmp_path / "out"
    interrupted(spec, out, 2)
    with pytest.raises(CheckpointError, match=r"step 2 belongs to another spec .*use an empty output folder"):
        carry_out(spec | {"seed": 1}, out)
    rows = own.retain.read_bytes()
    own.retain.write_bytes(rows.replace(b"the", b"thy"))
    with pytest.raises(CheckpointError, match="belongs to other data"):
        carry_out(spec, out)
    own.retain.write_bytes(rows)
    config = (own.model / "generation_config.json").read_text()
    (own.model / "generation_config.json").write_text(config.replace("{", "{ "))
    with pytest.raises(CheckpointError, match="belongs to another model"):
        carry_out(spec, out)
    (own.model / "generation_config.json").write_text(config)
    carry_out(spec, out)


def test_commitments_stand_for_the_data(unlearnt: Reciter, tmp_path: Path) -> None:
    spec = wanted(unlearnt, "npo+nll", "adamw")
    commitments = {"forget": "ab" * 32, "retain": "cd" * 32}
    interrupted(spec, tmp_path, 2, commitments=commitments)
    with pytest.raises(CheckpointError, match="belongs to other data"):
        carry_out(spec, tmp_path, commitments=commitments | {"forget": "00" * 32})
    state = checkpoint.read_state(tmp_path / "checkpoints" / "step-00000002")
    interrupted(spec, tmp_path / "unkeyed", 2)
    unkeyed = checkpoint.read_state(tmp_path / "unkeyed" / "checkpoints" / "step-00000002")
    # What a service writes is of no use to whoever guesses the rows and does not hold the commitments.
    assert unkeyed.data_check != state.data_check


def test_of_other_versions_is_refused(unlearnt: Reciter, tmp_path: Path) -> None:
    spec = wanted(unlearnt, "npo+nll", "adamw")
    interrupted(spec, tmp_path, 2)
    state = checkpoint.read_state(tmp_path / "checkpoints" / "step-00000002")
    older = dataclasses.replace(state, versions=state.versions | {"torch": "2.1.0"})
    with pytest.raises(CheckpointError, match=r"belongs to other versions \(torch 2\.1\.0, now torch 2\."):
        checkpoint.check_same_run(
            older, spec_digest=state.spec_digest, input_model=state.input_model, data_check=state.data_check
        )


def test_the_report_of_a_resumed_run_can_be_read(unlearnt: Reciter, tmp_path: Path) -> None:
    spec = wanted(unlearnt, "npo+kl", "soul", evaluation=QUICK)
    interrupted(spec, tmp_path, 6)
    carry_out(spec, tmp_path)
    Report.model_validate_json((tmp_path / "report.json").read_bytes())
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert list((tmp_path / "plots").glob("*.svg"))
