"""Published settings under a name: `{"preset": "soul/tofu/GradDiff/second-order", ...}` stands for what SOUL ran.

Numbers that nobody published are left to Lethe's defaults, and the preset's note says which those are.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from core.errors import Problem, SpecError
from core.spec.base import nearest, quotable, sendable, shown

Fields = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """Part of a request (`method`, `optimizer`, `training`), where it was published, and what of it was not."""

    name: str
    source: str
    fields: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class _SoulTask:
    """One task of SOUL (arXiv:2404.18239). `published`: (method, order) to rate, retain weight and file."""

    source: str
    training: Fields
    optimizer: Fields
    note: str
    published: Mapping[tuple[str, str], tuple[float, float, str]]


_ORDERS: dict[str, Fields] = {
    "first-order": {"name": "adamw", "betas": [0.9, 0.999], "eps": 1e-8},
    "second-order": {"name": "soul", "betas": [0.9, 0.95], "rho": 0.04},
}

# SOUL's names; its NPO puts the mean token loss where the paper's has the sequence's.
_SOUL_METHODS: dict[str, Fields] = {
    "FT": {"name": "FT"},
    "l1_sparse": {"name": "l1_sparse"},
    "GA": {"name": "GA"},
    "GradDiff": {"name": "GradDiff"},
    "GA+FT": {"name": "GA+FT"},
    "GA+KL": {"name": "GA+KL"},
    "CL": {"name": "CL"},
    "PO": {"name": "PO"},
    "CL+FT": {"name": "CL+FT"},
    "CL+KL": {"name": "CL+KL"},
    "RL": {"name": "RL"},
    "KL": {"name": "KL"},
    "NPO": {"name": "NPO", "beta": 0.1, "normalise": "tokens"},
    "GA_FT_epoch": {"name": "GA_FT_epoch"},
    "GA_KL_epoch": {"name": "GA_KL_epoch"},
    "CL_FT_epoch": {"name": "CL_FT_epoch"},
}

# Two names of one method: what was published for one holds for the other.
_SAME_METHOD = {"GA+FT": "GradDiff", "CL+FT": "PO"}

# Fixed in SOUL's src/model/unlearn.py or its Trainer's defaults; 1 row x accumulation 4 in every configuration.
_SOUL_TRAINING: Fields = {"batch_size": 4, "schedule": "linear", "warmup": 0.1, "max_grad_norm": 1.0}
_ALIKE = (
    "Not published for this method and task: optimizer.lr and the method's weights are Lethe's defaults. "
    "The rest is what SOUL's configurations for this task have in common."
)

_SOUL_TASKS: dict[str, _SoulTask] = {
    "soul/tofu": _SoulTask(
        "OPTML-Group/SOUL configs/TOFU",
        {"epochs": 5},
        {"weight_decay": 0.1},
        _ALIKE,
        {
            ("GradDiff", "first-order"): (5e-6, 0.3, "FO_GradDiff.json"),
            ("GradDiff", "second-order"): (5e-6, 2.0, "SO_GradDiff.json"),
            ("PO", "first-order"): (2e-5, 1.0, "FO_PO.json"),
            ("PO", "second-order"): (1e-5, 5.0, "SO_PO.json"),
        },
    ),
    "soul/detoxification/opt-1.3b": _SoulTask(
        "OPTML-Group/SOUL configs/Toxic",
        {"epochs": 5},
        {"weight_decay": 0.0},
        _ALIKE,
        {
            ("PO", "first-order"): (2e-5, 0.1, "FO_PO_opt.json"),
            ("PO", "second-order"): (2e-5, 0.1, "SO_PO_opt.json"),
        },
    ),
    "soul/detoxification/llama-2-7b": _SoulTask(
        "OPTML-Group/SOUL configs/Toxic",
        {"epochs": 10},
        {"weight_decay": 0.0},
        _ALIKE,
        {
            ("PO", "first-order"): (1e-5, 1.0, "FO_PO_llama.json"),
            ("PO", "second-order"): (1e-5, 0.1, "SO_PO_llama.json"),
        },
    ),
    "soul/copyright": _SoulTask(
        "OPTML-Group/SOUL src/model/unlearn.py",
        {},
        {},
        "SOUL published no configuration for its copyright task: epochs, optimizer.lr, optimizer.weight_decay and the "
        "method's weights are Lethe's defaults. The rest is common to SOUL's configurations for its other tasks.",
        {},
    ),
}


def _soul() -> list[Preset]:
    made = [_soul_preset(task, method, order) for task in _SOUL_TASKS for method in _SOUL_METHODS for order in _ORDERS]
    made += [
        Preset(f"{task}/{method}", "OPTML-Group/SOUL src/model/unlearn.py", {"method": {"name": method}})
        for task in _SOUL_TASKS
        for method in ("origin", "sys")
    ]
    target = Preset(
        "soul/copyright/target-model",
        "OPTML-Group/SOUL src/exec/Fine_tune_hp.py",
        {
            "method": {"name": "FT"},
            "optimizer": {**_ORDERS["first-order"], "lr": 1e-5, "weight_decay": 0.0},
            "training": {**_SOUL_TRAINING, "epochs": 10, "batch_size": 16, "warmup": 0.0},
        },
        "Makes the model that is to forget, by `lethe finetune`. For LLaMA-2, SOUL trained and merged adapters (rank "
        "8, alpha 32, dropout 0.05, all linear layers): give training.adapter; Lethe's have no dropout.",
    )
    return [*made, target]


def _soul_preset(task_name: str, method_name: str, order: str) -> Preset:
    task, method = _SOUL_TASKS[task_name], _SOUL_METHODS[method_name]
    optimizer = {**_ORDERS[order], **task.optimizer}
    training = {**_SOUL_TRAINING, **task.training}
    source, note = task.source, task.note
    published = task.published.get((_SAME_METHOD.get(method_name, method_name), order))
    if published:
        lr, weight, file = published
        method = {**method, "retain": {"name": "nll", "weight": weight}}
        optimizer["lr"] = lr
        source, note = f"{source}/{file}", ""
    fields = {"method": method, "optimizer": optimizer, "training": training}
    return Preset(f"{task_name}/{method_name}/{order}", source, fields, note)


_NLL: Fields = {"name": "nll", "weight": 1.0}
_ADAMW: Fields = {**_ORDERS["first-order"], "lr": 1e-5, "weight_decay": 0.01}
_TRAINING: Fields = {"epochs": 10, "batch_size": 32, "schedule": "linear", "warmup": 0.1, "max_grad_norm": 1.0}
_FIVE: Fields = {"epochs": 5, "warmup": 0.2}
_TEN_ON_TOFU = "The method's own 5 epochs; open-unlearning's TOFU experiment overrides them with 10."

# Each row: method, fields of the optimizer and of training that differ from the two above, note.
_OPEN_UNLEARNING: dict[str, tuple[Fields, Fields, Fields, str]] = {
    "GradAscent": ({"name": "GA"}, {}, {}, ""),
    "GradDiff": ({"name": "GradDiff", "weight": 1.0, "retain": _NLL}, {}, {}, ""),
    "NPO": ({"name": "NPO", "weight": 1.0, "beta": 0.1, "retain": _NLL}, {}, {}, ""),
    "SimNPO": ({"name": "simnpo", "weight": 0.125, "beta": 4.5, "delta": 0.0, "retain": _NLL}, {}, {}, ""),
    "DPO": ({"name": "dpo", "weight": 1.0, "beta": 0.1, "retain": _NLL}, {}, {}, ""),
    "RMU": (
        {"name": "rmu", "weight": 1.0, "c": 2.0, "layer": 7, "retain": {"name": "hidden", "weight": 1.0}},
        {},
        {},
        "open-unlearning's YAML trains every weight; Lethe's rmu trains mlp.down_proj of layers 5 to 7.",
    ),
    "UNDIAL": (
        {"name": "undial", "weight": 1.0, "beta": 10.0, "retain": {"name": "none"}},
        {"lr": 1e-4},
        {},
        "The method's own rate; open-unlearning's TOFU experiment overrides it with 1e-5.",
    ),
    "CE-U": ({"name": "ce_u", "skip": 1, "retain": {"name": "none"}}, {}, {}, ""),
    "WGA": ({"name": "wga", "weight": 1.0, "beta": 1.0, "retain": _NLL}, {}, _FIVE, _TEN_ON_TOFU),
    "SatImp": (
        {"name": "satimp", "weight": 0.1, "beta1": 5.0, "beta2": 1.0, "retain": _NLL},
        {},
        _FIVE,
        _TEN_ON_TOFU,
    ),
    "PDU": (
        {
            "name": "logit_flat",
            "weight": 1.0,
            "retain": {
                "name": "nll",
                "weight": 100.0,
                "schedule": {"name": "primal_dual", "eta": 5.0, "eps": 0.3, "warmup_epochs": 5.0},
            },
        },
        {},
        {"batch_size": 128},
        "TOFU settings of community/methods/PDU/run.sh, the YAML having no eps. open-unlearning moves the dual "
        "variable in every forward pass, Lethe once an optimizer step.",
    ),
}


def _open_unlearning() -> list[Preset]:
    return [
        Preset(
            f"open-unlearning/{name}",
            "locuslab/open-unlearning configs/trainer, configs/experiment/unlearn/tofu/default.yaml",
            {"method": method, "optimizer": {**_ADAMW, **optimizer}, "training": {**_TRAINING, **training}},
            note,
        )
        for name, (method, optimizer, training, note) in _OPEN_UNLEARNING.items()
    ]


_FINETUNING = ("soul/copyright/target-model",)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (*_soul(), *_open_unlearning())}


def expand(request: Any) -> Any:
    """The request with its preset's fields put under its own, and without `preset`; unchanged where it names none.

    Own fields win, one by one; but a part that names another method, optimizer or term replaces the preset's whole.
    Raises SpecError when no preset has that name.
    """
    if not isinstance(request, dict) or "preset" not in request:
        return request
    own = {key: value for key, value in request.items() if key != "preset"}
    return _under(own, _preset(request["preset"]).fields)


def expand_finetuning(request: Any) -> Any:
    """As `expand`, for the presets that make a model before it forgets, without the method.

    Raises SpecError for any other preset.
    """
    expanded = expand(request)
    if expanded is request:
        return request
    name = request["preset"]
    if name not in _FINETUNING:
        said = f"Preset '{name}' is for requests that forget. Allowed: {', '.join(_FINETUNING)}."
        raise SpecError([Problem("preset", name, said)])
    return expanded if "method" in request else {key: part for key, part in expanded.items() if key != "method"}


def _preset(name: Any) -> Preset:
    if not isinstance(name, str):
        message = f"Input should be the name of a preset (got {shown(name)})."
        raise SpecError([Problem("preset", sendable(name), message)])
    if name not in PRESETS:
        word = quotable(name)
        raise SpecError([Problem("preset", word, f"Unknown preset '{word}'.{nearest(word, _relatives(word))}")])
    return PRESETS[name]


def _relatives(name: str) -> list[str]:
    """The presets that begin with as much of the name as any does: all of them would be a page to read."""
    parts = name.split("/")
    for length in range(len(parts), 0, -1):
        family = "/".join(parts[:length]) + "/"
        found = [known for known in PRESETS if known.startswith(family)]
        if found:
            return found
    return list(PRESETS)


def _under(own: Fields, preset: Mapping[str, Any]) -> Fields:
    merged: Fields = dict(own)
    for key, value in preset.items():
        if key not in own:
            # Epochs and steps are two ways to give one length.
            if not (key == "epochs" and own.get("steps") is not None):
                merged[key] = deepcopy(value)
        elif isinstance(value, dict):
            given = {"name": own[key]} if isinstance(own[key], str) else own[key]
            if isinstance(given, dict) and given.get("name", value.get("name")) == value.get("name"):
                merged[key] = _under(given, value)
    return merged
