"""Methods that change weights other than by optimizer steps, against their formulas written out, and those that change
none."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.func import functional_call, jacrev

from core import model as models
from core.data.encode import EncodedSet
from core.data.inputs import Inputs
from core.edits import Context
from core.edits.influence import Rows, conjugate_gradient, influence
from core.edits.task_vector import subtract
from core.errors import ModelError, Stopped
from core.spec.records import Record
from tests import tiny
from tests.core.recording import Recorder, carry_out, weights_digest
from tests.models import Reciter

RETAIN = tiny.rows(5, [(2, 4), (3, 2), (1, 5)], vocab=7)
FORGET = tiny.rows(6, [(3, 3), (2, 2)], vocab=7)


def context(method: dict[str, Any], model: Any, folder: Path = Path()) -> Context:
    """An edit's context over the rows above; small passes, so that sums over passes are part of what is tested."""
    sets = {
        name: EncodedSet(tuple(Record("q", "a") for _ in rows), rows, ())
        for name, rows in {"forget": FORGET, "retain": RETAIN}.items()
    }
    return Context(tiny.spec(method, micro_batch_tokens=16), model, folder, Inputs(), sets, tiny.silent, tiny.STOP)


@pytest.fixture(scope="module")
def small() -> Any:
    """Few enough weights for the whole Gauss-Newton matrix."""
    return tiny.llama(vocab=7, hidden=8, layers=1)


@pytest.fixture(scope="module")
def dense(small: Any) -> torch.Tensor:
    """G of the retain rows' mean token loss, in double precision: `mean_t J_t' (diag p - p p') J_t`."""
    model = copy.deepcopy(small).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    total = torch.zeros(sum(p.numel() for p in parameters.values()), sum(p.numel() for p in parameters.values()))
    tokens = sum(row.answer_tokens for row in RETAIN)
    for row in RETAIN:

        def logits(weights: dict[str, torch.Tensor], row: Any = row) -> torch.Tensor:
            out = functional_call(model, weights, (torch.tensor([row.ids]),)).logits[0]
            return out[row.start - 1 : -1]

        blocks = jacrev(logits)(parameters)
        jacobian = torch.cat([blocks[name].flatten(2) for name in parameters], -1)
        p = torch.softmax(logits(parameters), -1)
        bend = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        total += torch.einsum("tvi,tvw,twj->ij", jacobian, bend, jacobian).float() / tokens
    return total


def flat(vector: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([x.detach().flatten() for x in vector])


def test_the_gauss_newton_product_is_that_of_the_matrix_written_out(small: Any, dense: torch.Tensor) -> None:
    rows = Rows(context({"name": "influence"}, small), RETAIN)
    generator = torch.Generator().manual_seed(3)
    v = [torch.randn(p.shape, generator=generator) for p in small.parameters()]
    wanted = dense @ flat(v)
    torch.testing.assert_close(flat(rows.product(v)), wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
    assert float(flat(v) @ flat(rows.product(v))) > 0


def test_the_diagonal_is_right_on_average(small: Any, dense: torch.Tensor) -> None:
    rows = Rows(context({"name": "influence"}, small), RETAIN)
    estimate = flat(rows.diagonal(draws=400, seed=0))
    wanted = dense.diag()
    assert float((estimate - wanted).norm() / wanted.norm()) < 0.1
    assert float(estimate.sum() / wanted.sum()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("solver", ["conjugate_gradient", "diagonal"])
def test_influence_is_one_newton_step(small: Any, dense: torch.Tensor, solver: str) -> None:
    model = copy.deepcopy(small)
    wanted = {"name": "influence", "solver": solver, "damping": 0.5, "scale": 3.0, "iterations": 400, "draws": 400}
    given = context({**wanted, "tolerance": 1e-6}, model)
    pull = flat(Rows(given, FORGET).gradient())
    matrix = dense if solver == "conjugate_gradient" else torch.diag(dense.diag())
    step = 3.0 * (len(FORGET) / len(RETAIN)) * torch.linalg.solve(matrix + 0.5 * torch.eye(len(pull)), pull)
    before = flat(list(model.parameters()))
    influence(given)
    moved = flat(list(model.parameters())) - before
    assert float((moved - step).norm() / step.norm()) < (1e-3 if solver == "conjugate_gradient" else 0.1)
    # It goes up the forget loss.
    assert float(moved @ pull) > 0


def test_conjugate_gradients_stop_where_they_are_told_to(small: Any) -> None:
    given = context({"name": "influence", "damping": 10.0, "iterations": 50, "tolerance": 0.9}, small)
    heard = Recorder()
    given = Context(given.spec, small, given.folder, given.inputs, given.sets, heard, heard.stop)
    rows = Rows(given, RETAIN)
    conjugate_gradient(rows, rows.gradient(), given.spec.method, given)  # type: ignore[arg-type]
    assert len(heard.of("progress")) == 1
    heard.stop.set()
    with pytest.raises(Stopped):
        rows.gradient()


def test_a_task_vector_is_gone_back_along(random_folder: Path) -> None:
    model, _ = models.load(random_folder, torch.device("cpu"))
    before = copy.deepcopy(model.state_dict())
    tiny.nudge(model)
    detour = copy.deepcopy(model.state_dict())
    subtract(context({"name": "task_vector", "alpha": 0.3}, model, random_folder))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.3 * (detour[name] - before[name]), rtol=1e-5, atol=1e-6)


def test_a_task_vector_run_goes_the_same_way_after_a_stop_while_scoring(unlearnt: Reciter, tmp_path: Path) -> None:
    wanted = unlearnt.spec(method={"name": "task_vector"}, training={"steps": 2, "batch_size": 3})
    carry_out(wanted, tmp_path / "a")
    heard = Recorder(lambda e: e["event"] == "phase" and e["phase"] == "score_after")
    with pytest.raises(Stopped):
        carry_out(wanted, tmp_path / "b", heard)
    carry_out(wanted, tmp_path / "b")
    assert weights_digest(tmp_path / "a") == weights_digest(tmp_path / "b")


def test_retraining_begins_at_the_base_and_never_sees_the_forget_set(unlearnt: Reciter, tmp_path: Path) -> None:
    model, tokenizer = models.load(unlearnt.model, torch.device("cpu"))
    tiny.nudge(model)
    models.save(model, tokenizer, tmp_path / "base")
    method = {"name": "retrain", "base": str(tmp_path / "base")}
    wanted = unlearnt.spec(method=method, optimizer={"name": "adamw", "lr": 1e-3}, training={"epochs": 1})
    heard = Recorder()
    report = carry_out(wanted, tmp_path / "out", heard).report
    assert report.training.steps == 3  # nine retain rows, four a step
    assert all(event["forget_loss"] == 0 for event in heard.of("step"))
    # The same fine-tuning asked for by its other name, on the base itself.
    again = wanted | {"model": str(tmp_path / "base"), "method": "FT"}
    carry_out(again, tmp_path / "again")
    assert weights_digest(tmp_path / "out") == weights_digest(tmp_path / "again")
    assert report.input_model != report.output_model


def test_a_base_of_another_shape_is_refused(unlearnt: Reciter, tokenizer: Any, tmp_path: Path) -> None:
    models.save(tiny.llama(vocab=len(tokenizer), hidden=16), tokenizer, tmp_path / "base")
    wanted = unlearnt.spec(method={"name": "retrain", "base": str(tmp_path / "base")})
    with pytest.raises(ModelError, match="must be of the same architecture and size") as caught:
        carry_out(wanted, tmp_path / "out")
    assert caught.value.param == "method.base"


def test_the_origin_stays_as_it_was(unlearnt: Reciter, tmp_path: Path) -> None:
    report = carry_out(unlearnt.spec(method="origin"), tmp_path).report
    assert report.after == report.before
    assert report.training.steps == 0
    now, then = (load_file(f / "model.safetensors") for f in (tmp_path / "model", unlearnt.model))
    assert all(torch.equal(now[name], then[name]) for name in then)


def test_a_guard_is_measured_under_its_prompt_and_delivered_with_it(unlearnt: Reciter, tmp_path: Path) -> None:
    guard = {"name": "guard", "system_prompt": "Say nothing of anybody."}
    report = carry_out(unlearnt.spec(method=guard), tmp_path).report
    assert report.after["forget.probability"] != report.before["forget.probability"]
    assert (tmp_path / "model" / "system_prompt.txt").read_text() == "Say nothing of anybody."
    assert "system_prompt.txt" in report.output_files
    assert any("weights were not changed" in sentence for sentence in report.limitations)
