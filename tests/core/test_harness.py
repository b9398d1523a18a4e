"""lm-evaluation-harness on a model in memory: its values by hand and by lm-eval itself, and what is said without."""

import copy
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from core.errors import SpecError, Stopped
from core.evaluation import harness
from core.events import StopFlag
from core.forward import generating, packs
from core.report.digest import file_digests
from core.report.schema import Absent, Measured, Measurement
from core.spec.evaluation import LmEval
from core.spec.gates import Gate
from tests import models, tiny

POSITIONS = 128
RESAMPLES = 50


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Rows of people, and the true answer at another place in each."""
    found = models.people(4)
    for i, row in enumerate(found):
        gold = i % 4
        row["gold"] = gold
        row["choices"] = [*row["perturbed_answer"][:gold], row["answer"], *row["perturbed_answer"][gold:]]
    return found


@pytest.fixture(scope="module")
def texts(rows: list[dict[str, Any]]) -> list[str]:
    """Texts of a few tokens, and of more than the model has positions."""
    return [" ".join(row["answer"] for row in rows[i : i + n]) for i, n in ((0, 12), (12, 1), (13, 2), (15, 5))]


@pytest.fixture(scope="module")
def tasks(rows: list[dict[str, Any]], texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of tasks about people: each output type of lm-eval, a group, a tag, and some that cannot be run."""
    folder = tmp_path_factory.mktemp("tasks")

    def data(name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        file = models.write_lines(folder / f"{name}.jsonl", lines)
        return {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")},
            "test_split": "test",
        }

    def write(name: str, **fields: Any) -> None:
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))

    def metrics(*names: str) -> list[dict[str, Any]]:
        return [{"metric": name} for name in names]

    choice = {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
    }
    for name, part in (("people_one", rows[:13]), ("people_two", rows[13:])):
        write(name, task=name, tag="people_all", **data(name, part), **choice, metric_list=metrics("acc", "acc_norm"))
    write(
        "people_group",
        group="people_group",
        task=["people_one", {"group": "inner", "task": ["people_two"]}],
        aggregate_metric_list=[
            {"metric": "acc", "weight_by_size": True},
            {"metric": "acc_norm", "weight_by_size": False},
        ],
    )
    write(
        "people_mcc", task="people_mcc", **data("people_mcc", rows), **choice, metric_list=metrics("mcc", "brier_score")
    )
    write(
        "people_text",
        task="people_text",
        **data("people_text", [{"text": text} for text in texts]),
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
    )
    write(
        "people_next",
        task="people_next",
        **data("people_next", rows),
        output_type="loglikelihood",
        doc_to_text="{{question}}",
        doc_to_target=" {{answer}}",
        metric_list=metrics("perplexity", "acc"),
    )
    answer = {
        **data("people_answer", rows[:6]),
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [*metrics("exact_match", "bleu"), {"metric": "chrf"}],
    }
    short = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
    one_filter = [{"name": "strict-match", "filter": [{"function": "take_first"}]}]
    write("people_answer", task="people_answer", **answer, generation_kwargs=short)
    write("people_filter", task="people_filter", **answer, generation_kwargs=short, filter_list=one_filter)
    both = [*one_filter, {"name": "lower", "filter": [{"function": "lowercase"}, {"function": "take_first"}]}]
    write("people_filters", task="people_filters", **answer, generation_kwargs=short, filter_list=both)
    drawn = {**short, "do_sample": True, "temperature": 1.0}
    write("people_drawn", task="people_drawn", **answer, generation_kwargs=drawn)
    write("people_long", task="people_long", **answer, generation_kwargs={"until": ["\n"], "max_gen_toks": 500})
    gone = data("gone", [])
    (folder / "gone.jsonl").unlink()
    write("people_gone", task="people_gone", tag="gone", **gone, **choice, metric_list=metrics("acc", "acc_norm"))
    write("gone_group", group="gone_group", task=["people_one", "people_gone"], aggregate_metric_list=metrics("acc"))
    hub = [{"metric": "exact_match", "hf_evaluate": True}]
    write("people_hub", task="people_hub", **{**answer, "metric_list": hub})
    write("people_odd", task="people_odd", **{**answer, "metric_list": metrics("a_metric_of_the_hub")})
    write("people_code", task="people_code", **answer, unsafe_code=True)
    return str(folder)


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return tiny.llama(vocab=len(tokenizer))


def run(model: Any, tokenizer: Any, folder: str, *names: str, **how: Any) -> dict[str, Measurement]:
    fields = {name: how.pop(name) for name in ("limit", "num_fewshot") if name in how}
    spec = LmEval(tasks=list(names), include_path=folder, **fields)
    settings = {"batch_tokens": 512, "max_length": POSITIONS, "resamples": RESAMPLES, "seed": 7, "stop": tiny.STOP}
    return harness.run(model, tokenizer, spec, **{**settings, **how})


def values(found: dict[str, Measurement]) -> dict[str, float]:
    wrong = {name: m for name, m in found.items() if isinstance(m, Absent)}
    assert not wrong
    return {name: m.value for name, m in found.items() if isinstance(m, Measured)}


def log_likelihoods(model: Any, ids: list[int]) -> torch.Tensor:
    """Of every token but the first, from the model's own forward pass of one row: (tokens - 1,)."""
    with generating(model), torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_accuracy_by_hand(model: Any, tokenizer: Any, tasks: str, rows: list[dict[str, Any]]) -> None:
    right = {"acc": 0, "acc_norm": 0}
    for row in rows[:13]:
        context = f"Question: {row['question']}\nAnswer:"
        likely = {"acc": [], "acc_norm": []}
        for choice in row["choices"]:
            ids = tokenizer(f"{context} {choice}")["input_ids"]
            own = len(ids) - len(tokenizer(context)["input_ids"])
            total = float(log_likelihoods(model, ids)[-own:].sum())
            likely["acc"].append(total)
            likely["acc_norm"].append(total / len(choice))
        for name, scores in likely.items():
            right[name] += int(np.argmax(scores)) == row["gold"]
    found = run(model, tokenizer, tasks, "people_one")
    assert list(found) == ["lm_eval.people_one.acc", "lm_eval.people_one.acc_norm"]
    assert values(found) == {f"lm_eval.people_one.{name}": count / 13 for name, count in right.items()}
    assert 0 < right["acc"] < 13
    for measured in found.values():
        assert isinstance(measured, Measured)
        assert measured.rows == 13
        assert measured.low is not None
        assert measured.high is not None
        assert measured.low < measured.value < measured.high


def test_perplexity_by_hand_of_texts_longer_than_the_model_takes(
    model: Any, tokenizer: Any, tasks: str, texts: list[str]
) -> None:
    total, longest = 0.0, 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        longest = max(longest, len(ids))
        # Each window predicts as many tokens as the model takes, and is as wide as it takes.
        line = [tokenizer.bos_token_id, *ids]
        for at in range(0, len(ids), POSITIONS):
            end = min(at + POSITIONS, len(ids))
            total += float(log_likelihoods(model, line[max(0, end - POSITIONS) : end + 1])[at - end :].sum())
    assert longest > 2 * POSITIONS
    words = sum(len(re.split(r"\s+", text)) for text in texts)
    lengths = sum(len(text.encode()) for text in texts)
    found = values(run(model, tokenizer, tasks, "people_text"))
    assert found == pytest.approx(
        {
            "lm_eval.people_text.word_perplexity": math.exp(-total / words),
            "lm_eval.people_text.byte_perplexity": math.exp(-total / lengths),
            "lm_eval.people_text.bits_per_byte": -total / lengths / math.log(2),
        },
        rel=1e-4,
    )


EVERY = ("people_group", "people_mcc", "people_text", "people_next", "people_answer", "people_filters")


def lm_eval_s_own(model: Any, tokenizer: Any, folder: str, shots: int, limit: int) -> dict[str, float]:
    """What lm-eval says of the same tasks with its own model class, by our names."""
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    wanted = TaskManager(include_path=folder, include_defaults=False).load(list(EVERY))
    for task in wanted["tasks"].values():
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=7)
    with generating(model):
        lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=3, max_length=POSITIONS)
        told = evaluate(lm, wanted, limit=limit, bootstrap_iters=0)
    assert told is not None
    found = {}
    for task, results in told["results"].items():
        for key, value in results.items():
            if "," in key and "_stderr" not in key:
                name, _, filtered = key.partition(",")
                several = task == "people_filters"
                found[f"lm_eval.{task}.{name}{'@' + filtered.replace('-', '_') if several else ''}"] = value
    return found


def test_every_value_is_lm_eval_s_own(model: Any, tokenizer: Any, tasks: str) -> None:
    wanted = lm_eval_s_own(model, tokenizer, tasks, shots=1, limit=9)
    found = run(model, tokenizer, tasks, *EVERY, num_fewshot=1, limit=9)
    assert values(found) == pytest.approx(wanted, rel=1e-4)
    assert len(wanted) == 2 + 4 + 2 + 3 + 2 + 3 + 6


def test_no_value_depends_on_what_it_is_batched_with(model: Any, tokenizer: Any, tasks: str) -> None:
    names = ("people_group", "people_text", "people_answer")
    alone, together = (values(run(model, tokenizer, tasks, *names, batch_tokens=n)) for n in (1, 100_000))
    assert together == pytest.approx(alone, rel=1e-5)


def test_a_model_that_is_not_packed_gives_the_same(model: Any, tokenizer: Any, tasks: str) -> None:
    packed = values(run(model, tokenizer, tasks, "people_one", "people_text"))
    assert packs(model)
    model.set_attn_implementation("sdpa")
    padded = values(run(model, tokenizer, tasks, "people_one", "people_text", batch_tokens=300))
    assert padded == pytest.approx(packed, rel=1e-5)


def test_intervals(model: Any, tokenizer: Any, tasks: str) -> None:
    found = run(model, tokenizer, tasks, *EVERY)
    for name, measured in found.items():
        assert isinstance(measured, Measured), name
        if name.endswith(("bleu", "chrf")) or "bleu@" in name or "chrf@" in name:
            assert (measured.low, measured.high) == (None, None), "texts are not drawn anew"
            continue
        assert measured.low is not None, name
        assert measured.high is not None, name
        assert measured.low <= measured.value <= measured.high, name
        if "exact_match" not in name and "people_next.acc" not in name:
            assert measured.low < measured.high, name
    # Of a group: documents of each task drawn among themselves, so no narrower than of the larger task alone is likely.
    group, one = found["lm_eval.people_group.acc"], found["lm_eval.people_one.acc"]
    assert isinstance(group, Measured)
    assert isinstance(one, Measured)
    assert (group.rows, one.rows) == (20, 13)


def test_it_leaves_everything_as_it_was(model: Any, tokenizer: Any, tasks: str, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "before")
    weights = {name: p.clone() for name, p in model.state_dict().items()}
    config, generation = model.config.to_dict(), model.generation_config.to_dict()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    undisturbed = (random.random(), np.random.random(), torch.rand(1))
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    first = run(model, tokenizer, tasks, "people_drawn", "people_one", num_fewshot=1)
    assert (random.random(), np.random.random(), torch.rand(1)) == undisturbed
    assert packs(model)
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (config, generation)
    assert not model.training
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], p) for name, p in weights.items())
    assert not model._forward_pre_hooks
    tokenizer.save_pretrained(tmp_path / "after")
    assert tokenizer.pad_token is None
    assert file_digests(tmp_path / "before") == file_digests(tmp_path / "after")
    assert run(model, tokenizer, tasks, "people_drawn", "people_one", num_fewshot=1) == first


def test_a_stop_is_heard_in_the_middle_of_a_text(model: Any, tokenizer: Any, tasks: str) -> None:
    stop = StopFlag()
    calls = []

    def count(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            stop.set()

    hook = model.register_forward_hook(count)
    with pytest.raises(Stopped):
        run(model, tokenizer, tasks, "people_answer", stop=stop)
    hook.remove()
    assert len(calls) == 3
    assert packs(model)
    assert not model._forward_pre_hooks
    with pytest.raises(Stopped):
        run(model, tokenizer, tasks, "people_one", stop=stop)


REASONS = {
    "people_gone": "the data of task people_gone could not be read: FileNotFoundError: ",
    "people_long": "task people_long could not be run: AssertionError: ",
    "people_hub": "metric 'exact_match' of task people_hub is code of the hub, which is never run",
    "people_odd": "metric 'a_metric_of_the_hub' of task people_odd is code of the hub, which is never run",
    "people_code": "task people_code runs code that the model writes, which is never done here",
}


def test_what_cannot_be_read_or_run_is_absent_and_the_rest_is_run(model: Any, tokenizer: Any, tasks: str) -> None:
    done: list[tuple[int, int]] = []
    names = [*REASONS, "people_two"]
    found = run(model, tokenizer, tasks, *names, progress=lambda *counts: done.append(counts))
    assert done == [(i + 1, len(names)) for i in range(len(names))]
    two = ["lm_eval.people_two.acc", "lm_eval.people_two.acc_norm"]
    assert [name for name, measured in found.items() if isinstance(measured, Measured)] == two
    for task, reason in REASONS.items():
        mine = {name.split(".")[2]: m for name, m in found.items() if name.split(".")[1] == task}
        assert all(isinstance(m, Absent) and m.absent.startswith(reason) for m in mine.values())
        assert list(mine) == {
            "people_gone": ["acc", "acc_norm"],
            "people_hub": ["exact_match"],
            "people_odd": ["a_metric_of_the_hub"],
        }.get(task, ["exact_match", "bleu", "chrf"])


def test_a_group_of_which_a_part_cannot_be_read_has_no_value(model: Any, tokenizer: Any, tasks: str) -> None:
    found = run(model, tokenizer, tasks, "gone_group")
    names = ["gone_group.acc", "people_one.acc", "people_one.acc_norm", "people_gone.acc", "people_gone.acc_norm"]
    assert list(found) == [f"lm_eval.{name}" for name in names]
    for measured in found.values():
        assert isinstance(measured, Absent)
        assert measured.absent.startswith("the data of group gone_group could not be read: FileNotFoundError: ")


def test_a_tag_is_its_tasks_each_of_them_once(model: Any, tokenizer: Any, tasks: str) -> None:
    found = run(model, tokenizer, tasks, "people_two", "people_all", "people_two")
    assert list(found) == [f"lm_eval.people_{n}.{metric}" for n in ("two", "one") for metric in ("acc", "acc_norm")]


def test_a_filter_is_told_where_there_are_several(model: Any, tokenizer: Any, tasks: str) -> None:
    found = run(model, tokenizer, tasks, "people_filter", "people_filters", limit=1)
    metrics = ("exact_match", "bleu", "chrf")
    assert list(found) == [
        *(f"lm_eval.people_filter.{metric}" for metric in metrics),
        *(f"lm_eval.people_filters.{metric}@{name}" for name in ("strict_match", "lower") for metric in metrics),
    ]
    for name in found:
        assert Gate(metric=name, at_least=0.5).metric == name


def test_a_perplexity_too_large_for_a_number_is_absent(model: Any, tokenizer: Any, tasks: str) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    found = run(model, tokenizer, tasks, "people_text")
    word, byte, bits = found.values()
    assert word == Absent(absent="the value is too large for a number")
    assert isinstance(byte, Measured | Absent)
    assert isinstance(bits, Measured)
    assert bits.value > 1000


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"include_path": "/nowhere"}, "include_path", "There is no such folder."),
        (
            {"tasks": ["people_two", "people_group"]},
            "tasks.1",
            "'people_two' is asked for twice: by 'people_two' and by",
        ),
        (
            {"tasks": ["people_group", "people_one"]},
            "tasks.1",
            "'people_one' is asked for twice: by 'people_group' and",
        ),
        (
            {"tasks": ["people_group", "gone_group"]},
            "tasks.1",
            "'people_one' is asked for twice: by 'people_group' and",
        ),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_anything_is_read(
    tasks: str, fields: dict[str, Any], param: str, said: str
) -> None:
    with pytest.raises(SpecError) as caught:
        harness.check(LmEval(**{"tasks": ["people_one"], "include_path": tasks, **fields}))
    (problem,) = caught.value.problems
    assert problem.param == f"evaluation.lm_eval.{param}"
    assert said in problem.message


PUBLISHED = """
import json, sys, time
import torch
from core.errors import SpecError
from core.evaluation import harness
from core.evaluation.harness_tasks import units
from core.events import StopFlag
from core.model import load
from core.spec.evaluation import LmEval
from core.spec.gates import Gate
out = {}
for name in ("arc_eazy", "qqqqqqqqqqqq"):
    try:
        harness.check(LmEval(tasks=["boolq", name]))
    except SpecError as error:
        out[name] = [[p.param, p.value, p.message] for p in error.problems]
souls = "boolq rte hellaswag winogrande arc_challenge arc_easy openbookqa piqa truthfulqa wikitext".split()
_, found = units(LmEval(tasks=souls))
out["souls"] = {unit.name: unit.declared for unit in found}
_, (mmlu,) = units(LmEval(tasks=["mmlu"]))
out["mmlu"] = [mmlu.declared[:1], len(mmlu.tasks), sorted(mmlu.tasks)[:2]]
model, tokenizer = load(__import__("pathlib").Path(sys.argv[1]), torch.device("cpu"))
began = time.monotonic()
spec = LmEval(tasks=["arc_easy", "ai2_arc"])
told = harness.run(model, tokenizer, spec, batch_tokens=512, max_length=128, resamples=9, seed=0, stop=StopFlag())
out["arc"] = {name: m.model_dump() for name, m in told.items()}
out["seconds"] = time.monotonic() - began
print(json.dumps(out))
"""


def test_published_tasks_by_name_where_the_hub_cannot_be_reached(random_folder: Path, tmp_path: Path) -> None:
    # In a process of its own: the hub's library settles its ways as it loads. The index of all tasks is read once.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PUBLISHED, str(random_folder)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout.splitlines()[-1])
    ((param, value, message),) = out["arc_eazy"]
    assert (param, value) == ("evaluation.lm_eval.tasks.1", "arc_eazy")
    assert message.startswith("Unknown task 'arc_eazy'. Nearest: arc_easy, ")
    assert message.count(",") == 9
    assert out["qqqqqqqqqqqq"][0][2].endswith("No task has a name like it; `lm-eval ls tasks` lists them.")
    both = ("hellaswag", "arc_challenge", "arc_easy", "openbookqa", "piqa")
    alone = ("boolq", "rte", "winogrande", "truthfulqa_mc1", "truthfulqa_mc2")
    perplexities = ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    assert out["souls"] == {
        **{name: [f"lm_eval.{name}.acc", f"lm_eval.{name}.acc_norm"] for name in both},
        **{name: [f"lm_eval.{name}.acc"] for name in alone},
        "wikitext": [f"lm_eval.wikitext.{metric}" for metric in perplexities],
    }
    assert out["mmlu"] == [["lm_eval.mmlu.acc"], 57, ["mmlu_abstract_algebra", "mmlu_anatomy"]]
    assert list(out["arc"]) == [f"lm_eval.arc_{n}.{m}" for n in ("easy", "challenge") for m in ("acc", "acc_norm")]
    for name, measured in out["arc"].items():
        assert measured["absent"].startswith(f"the data of task {name.split('.')[1]} could not be read: ")
    assert out["seconds"] < 20
