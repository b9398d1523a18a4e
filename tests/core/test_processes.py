"""Two processes are one: shares of a step add up to it, and whoever starts them, the run tells the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from core.data import Inputs
from core.data.feed import Feed
from core.errors import SpecError
from core.events import StopFlag
from core.parallel import launch, peers
from core.parallel.peers import Place, Task
from core.parallel.processes import Processes
from core.reference import Reference, observe
from core.run import run
from core.spec.job import parse
from core.train import Trainer
from tests import tiny
from tests.core.recording import QUICK, carry_out, interrupted, weights_digest
from tests.models import ROOT, Reciter
from tests.zygote import Process, Zygote
from worker.engine import Engine

SETS = {
    "forget": tiny.rows(1, [(3, 5), (8, 2), (4, 11), (6, 6), (2, 3)]),
    "retain": tiny.rows(2, [(5, 4), (2, 13), (9, 1), (4, 4), (7, 7), (3, 9), (6, 2)]),
}
# What two runs of a spec may differ in.
_APART = {"started_at", "finished_at", "seconds", "seconds_to_first_step", "output_model", "output_files"}


class Share(Processes):
    """One process's share of a step, with nobody there to talk to."""

    def wrap(self, objective: Any) -> Any:
        return objective

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("packed", [True, False])
def test_the_shares_of_a_step_are_the_step_in_equally_many_passes(ranks: int, packed: bool) -> None:
    wanted = tiny.spec({"name": "npo", "retain": "nll"}, batch_size=4, micro_batch_tokens=24)
    for step in range(3):
        whole = Feed(wanted, SETS, packed, {})
        shares = [list(Feed(wanted, SETS, packed, {}, rank, ranks).portions(list(SETS), step)) for rank in range(ranks)]
        for name in SETS:
            taken = [row for share in shares for portion in share if portion.weight for row in portion.rows[name]]
            assert sorted(taken) == sorted(whole.rows(name, step))
        assert len({len(share) for share in shares}) == 1
        assert all(any(portion.rows.values()) for share in shares for portion in share)


@pytest.mark.parametrize("method", ["npo", "simnpo", "dpo", {"name": "rmu", "layer": 0}])
def test_gradients_of_shares_average_to_those_of_one_process(method: Any) -> None:
    method = (method if isinstance(method, dict) else {"name": method}) | {"retain": "kl"}
    wanted = tiny.spec(method, "adamw", batch_size=4, micro_batch_tokens=40)
    sets = SETS | {"alternative": tiny.rows(3, [(e.start, 3) for e in SETS["forget"]])}
    model = tiny.llama()
    whole = Trainer(wanted, model, sets, Reference(), 1)
    rows = {name: whole.feed.rows_ever(name, 1) for name in whole.names}
    needs = {name: whole.objective.needs[name] for name in whole.names}
    observe(whole.reference, needs, model, sets, rows, whole.objective.layer, 4096, StopFlag())
    tiny.nudge(model)
    losses = whole.gradients(StopFlag())
    gradients = tiny.gradients(model)
    shared = dict.fromkeys(gradients, torch.zeros(()))
    told = dict.fromkeys(losses, torch.zeros(()))
    for rank in range(2):
        share = Trainer(wanted, model, sets, whole.reference, 1, Share(rank, 2))
        told = {name: told[name] + loss for name, loss in share.gradients(StopFlag()).items()}
        shared = {name: shared[name] + g / 2 for name, g in tiny.gradients(model).items()}
    for name, loss in losses.items():
        torch.testing.assert_close(told[name], loss, rtol=1e-5, atol=1e-6)
    for name, g in gradients.items():
        torch.testing.assert_close(shared[name], g, rtol=1e-4, atol=1e-6, msg=name)


def same(found: Any, wanted: Any, where: str = "") -> None:
    """Two reports say the same: numbers to 1e-4, everything else to the letter."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for name in wanted.keys() - _APART:
            same(found[name], wanted[name], f"{where}.{name}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
            same(a, b, f"{where}.{i}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6), where
    else:
        assert found == wanted, where


def request(unlearnt: Reciter, **training: Any) -> dict[str, Any]:
    return unlearnt.spec(
        method={"name": "npo", "retain": "kl"},
        optimizer={"name": "sophia_g", "lr": 1e-3, "every": 2, "curvature_on": "both"},
        training={"steps": 5, "batch_size": 5, "micro_batch_tokens": 200, **training},
        evaluation=QUICK | {"batch_tokens": 256},
    )


def read(report: Path) -> tuple[dict[str, Any], int]:
    """A report without what is not compared, and of how many processes it is."""
    found = json.loads(report.read_text())
    processes = found["environment"].pop("processes")
    found["training"].pop("resumed_from")
    return found, processes


_TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
_ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
_SETTLED = ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")


@pytest.mark.parametrize("launcher", [_TORCHRUN, _ACCELERATE + _SETTLED], ids=["torchrun", "accelerate"])
def test_copies_tell_the_curve_and_the_report_of_one_process(
    launcher: tuple[str, ...], unlearnt: Reciter, tmp_path: Path
) -> None:
    spec = request(unlearnt)
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", *launcher, "-m", "core.run", str(tmp_path / "spec.json"), "--out"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "two")], cwd=ROOT, env=environment, capture_output=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr.decode()
    carry_out(spec, tmp_path / "one")
    one, two = read(tmp_path / "one" / "report.json"), read(tmp_path / "two" / "report.json")
    assert (one[1], two[1]) == (1, 2)
    one[0]["environment"]["network"] = two[0]["environment"]["network"]
    same(two[0], one[0])
    # Only the first process speaks.
    events = [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith("{")]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4, 5]


def test_shards_go_on_from_one_process_and_one_process_from_shards(unlearnt: Reciter, tmp_path: Path) -> None:
    spec = request(unlearnt, sharding="fsdp", checkpoint_every=1)
    carry_out(spec, tmp_path / "one")
    before = interrupted(spec, tmp_path / "begun", 2).of("checkpoint")[-1]
    for name, content in (("spec", spec), ("inputs", {"models": {}, "datasets": {}})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    command = {name: str(tmp_path / f"{name}.json") for name in ("spec", "inputs")}
    command |= {"out": str(tmp_path / "shards"), "resume": before["folder"]}
    engine, heard = Engine(processes=2), []
    try:
        engine.start(command | {"commitments": {}, "lease": 100})
        while (event := engine.events.get(timeout=60)) is not None:
            heard.append(event)
    finally:
        code = engine.wait()
    assert code == 0, heard[-1]
    assert [event["step"] for event in heard if event["event"] == "step"] == [3, 4, 5]
    *_, last = (event["folder"] for event in heard if event["event"] == "checkpoint")
    run(parse(spec), Inputs(), tmp_path / "ended", emit=tiny.silent, stop=StopFlag(), resume=Path(last))
    (one, _), (shards, processes), (ended, _) = (
        read(tmp_path / out / "report.json") for out in ("one", "shards", "ended")
    )
    assert processes == 2
    one["environment"]["network"] = shards["environment"]["network"] = ended["environment"]["network"]
    same(shards, one)
    same(ended, one)


_RMU = {"name": "rmu", "layer": 0}
# Rows of 30 to 70 tokens: few enough a pass for passes of one set alone, on one process or on both.
_TOGETHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = (
    {
        f"rmu-{retain}-{sharding}": (
            _RMU | {"retain": retain},
            # Layer 1 too, above the one that RMU looks at: its gradient is of the retain set alone, or there is none.
            {"sharding": sharding, "layers": [0, 1], "micro_batch_tokens": 100},
        )
        for retain in ("nll", "hidden")
        for sharding in ("ddp", "fsdp")
    }
    | {
        "lora": (
            {"name": "npo", "retain": "nll"},
            {"adapter": "lora", "micro_batch_tokens": 100, "checkpoint_every": 1},
        ),
        "task_vector": ({"name": "task_vector"}, {}),
    }
    | {
        # The gate never holds: what is delivered is the look with the most forgetting.
        f"stop_when-{sharding}": ({"name": "npo", "retain": "nll"}, {"sharding": sharding, "stop_when": {"every": 1}})
        for sharding in ("ddp", "fsdp")
    }
)
_FORGOTTEN = {"metric": "forget.probability", "relative_to": "before", "at_most": 0.5}


def test_a_method_that_looks_inside_an_adapter_and_an_edit_are_the_same_in_two_processes(
    unlearnt: Reciter, zygote: Zygote, tmp_path: Path
) -> None:
    shared = {"steps": 3, "batch_size": 5}
    specs = {
        name: unlearnt.spec(method=method, training=shared | training, evaluation=QUICK, gates=[_FORGOTTEN])
        for name, (method, training) in _TOGETHER.items()
    }
    again = {"resumed": (specs["lora"], "two/lora/checkpoints/step-00000002")}
    (tmp_path / "runs.json").write_text(json.dumps({name: (spec, None) for name, spec in specs.items()} | again))
    with (tmp_path / "said").open("wb") as said, Path(os.devnull).open("rb") as nothing:
        running = [
            zygote.start("tests.core.together", str(rank), str(tmp_path), stdin=nothing, stdout=said, stderr=said)
            for rank in range(2)
        ]
    for name, spec in specs.items():
        carry_out(spec, tmp_path / "one" / name)
    assert [process.wait(60) for process in running] == [0, 0], (tmp_path / "said").read_text()
    for name in specs:
        (one, _), (two, processes) = (read(tmp_path / part / name / "report.json") for part in ("one", "two"))
        assert processes == 2
        one["environment"]["network"] = two["environment"]["network"]
        same(two, one, name)
        weights = [load_file(tmp_path / part / name / "model" / "model.safetensors") for part in ("one", "two")]
        torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5, msg=name)
    assert weights_digest(tmp_path / "two" / "resumed") == weights_digest(tmp_path / "two" / "lora")


@pytest.fixture
def two(unlearnt: Reciter, zygote: Zygote, tmp_path: Path) -> Iterator[Process]:
    """A run of two processes that takes its steps and would never end; what it says is in `said`."""
    endless = {"steps": 100_000, "batch_size": 2, "processes": 2, "checkpoint_every": 50_000}
    (tmp_path / "spec.json").write_text(json.dumps(unlearnt.spec(training=endless, evaluation=QUICK)))
    arguments = (str(tmp_path / "spec.json"), "--out", str(tmp_path / "out"))
    with (tmp_path / "said").open("wb") as said, Path(os.devnull).open("rb") as nothing:
        process = zygote.start("core.run", *arguments, stdin=nothing, stdout=said, stderr=said)
    deadline = time.monotonic() + 60
    while '"event": "step"' not in (tmp_path / "said").read_text() and process.alive():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    with suppress(ProcessLookupError):
        process.signal(signal.SIGKILL)


def last_words(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "said").read_text().splitlines() if line.startswith("{")]


def test_the_death_of_one_process_is_the_end_of_the_other(two: Process, tmp_path: Path) -> None:
    (peer,) = psutil.Process(two.pid).children()
    peer.kill()
    assert two.wait(30) == 70
    error = last_words(tmp_path)[-1]
    assert (error["code"], error["retryable"]) == ("process_lost", True)
    assert "Process 2 of 2 was ended by signal 9" in error["message"]


def test_a_stop_that_one_process_hears_is_heeded_by_both(two: Process, tmp_path: Path) -> None:
    (peer,) = psutil.Process(two.pid).children()
    peer.terminate()
    assert two.wait(30) == 3
    *_, checkpoint, error = last_words(tmp_path)
    assert (checkpoint["event"], error["code"]) == ("checkpoint", "stopped")
    psutil.wait_procs([peer], timeout=5)
    assert not peer.is_running()


@pytest.mark.parametrize(
    ("fields", "place", "param", "said"),
    [
        ({"training": {"processes": 1000}}, None, "training.processes", "at most"),
        ({"training": {"processes": 3}}, Place(0, 2, 0, 2), "training.processes", "was started as 2 processes"),
        ({"optimizer": "sophia_h"}, None, "optimizer.name", "second derivatives"),
        ({"method": {"name": "task_vector"}}, None, "method.name", "whole weights"),
        ({"method": {"name": "influence"}, "training": {"sharding": "ddp"}}, None, "method.name", "processes to 1"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_before_a_weight_is_read(
    fields: dict[str, Any], place: Place | None, param: str, said: str, tmp_path: Path
) -> None:
    data = {name: {"source": "jsonl", "path": name} for name in ("forget", "retain")}
    wanted = {"model": "nowhere", "data": data, "method": "GradDiff", **fields}
    wanted["training"] = {"processes": 2, "sharding": "fsdp"} | fields.get("training", {})
    with pytest.raises(SpecError, match=said) as caught:
        launch.carry_out(Task(parse(wanted), Inputs(), tmp_path), tiny.silent, StopFlag(), place)
    assert caught.value.param == param


def test_influence_is_refused_also_where_others_started_the_processes(tmp_path: Path) -> None:
    wanted = tiny.spec("influence")
    with pytest.raises(SpecError, match="processes to 1") as caught:
        launch.carry_out(Task(wanted, Inputs(), tmp_path), tiny.silent, StopFlag(), Place(0, 2, 0, 2))
    assert caught.value.param == "method.name"


def test_a_peer_is_shown_where_the_packages_lie() -> None:
    assert (peers._ROOT / "core" / "parallel" / "peers.py").is_file()


def test_the_setting_counts_where_the_spec_names_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_PROCESSES", "3")
    assert launch.wanted(tiny.spec("ascent")) == 3
    assert launch.wanted(tiny.spec("ascent", processes=1)) == 1
    monkeypatch.setenv("LETHE_PROCESSES", "many")
    with pytest.raises(SpecError, match="LETHE_PROCESSES must be a whole number"):
        launch.wanted(tiny.spec("ascent"))
