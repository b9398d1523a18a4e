"""Toxicity of texts, as a classifier scores it: that of unitary/toxic-bert, or of any other that has such a label."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from core import model as models
from core.data.batches import by_length
from core.errors import Problem, SpecError
from core.evaluation.judges import JudgeMissing, failed, folder_of, named
from core.events import StopFlag
from core.spec.base import nearest, quotable
from core.spec.evaluation import Classifier

_TOKENS = 8192  # in one pass, padding included
_NO_LIMIT = 1_000_000


def scores(judge: Classifier, texts: Sequence[str], device: torch.device, stop: StopFlag) -> list[float]:
    """The classifier's score, 0 to 1, for its label of each text; a text longer than the model takes loses its end.

    A sigmoid where labels are scored one by one, a softmax where they exclude each other. Each distinct text is scored
    once. Raises SpecError where the model has no such label, JudgeMissing, and Stopped between batches.
    """
    if not texts:
        return []
    model, tokenizer = _loaded(judge, device)
    label, squash = _label(judge, model.config), _squash(model.config)
    distinct = list(dict.fromkeys(texts))
    cut: dict[str, Any] = {"truncation": True, "max_length": _room(model, tokenizer)}
    lengths = [len(ids) for ids in tokenizer(distinct, **cut)["input_ids"]]
    found: dict[str, float] = {}
    for batch in by_length(range(len(distinct)), lengths.__getitem__, _TOKENS):
        stop.check()
        own = [distinct[i] for i in batch]
        try:
            inputs = tokenizer(own, padding=True, return_tensors="pt", **cut).to(device)
            with torch.inference_mode():
                logits: Tensor = model(**inputs).logits  # (texts, labels)
        except Exception as error:
            # A broken model shows in errors of any type. One too large for the device is no reason to lose the run.
            raise failed(judge, "run", error) from error
        found.update(zip(own, squash(logits.float())[:, label].tolist(), strict=True))
    if not all(map(math.isfinite, found.values())):
        raise JudgeMissing(f"{named(judge)} gives scores that are no numbers")
    return [found[text] for text in texts]


def _loaded(judge: Classifier, device: torch.device) -> tuple[Any, Any]:
    """Model and tokenizer, ready to take texts of different lengths at once."""
    folder = folder_of(judge)
    try:
        model, tokenizer, lacks = models.read(AutoModelForSequenceClassification, folder)
    except Exception as error:
        # What a library says to a broken file is of any type: its own, a KeyError, Rust's.
        raise failed(judge, "loaded", error) from error
    if lacks is not None:
        raise JudgeMissing(f"{named(judge)} {lacks}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    try:
        return model.to(device).eval(), tokenizer
    except Exception as error:
        raise failed(judge, "loaded", error) from error


def _label(judge: Classifier, config: Any) -> int:
    names = {str(name): int(i) for i, name in config.id2label.items()}
    if judge.label not in names:
        message = f"{named(judge)} has no label '{quotable(judge.label)}'.{nearest(judge.label, names)}"
        raise SpecError([Problem("evaluation.classifier.label", judge.label, message)])
    return names[judge.label]


def _squash(config: Any) -> Callable[[Tensor], Tensor]:
    """From logits to scores, chosen as transformers' own pipeline for texts chooses it."""
    one_by_one = config.problem_type == "multi_label_classification" or config.num_labels == 1
    if config.problem_type is None and not one_by_one:
        one_by_one = getattr(config, "function_to_apply", None) == "sigmoid"
    return torch.sigmoid if one_by_one else torch.nn.Softmax(-1)


def _room(model: Any, tokenizer: Any) -> int:
    """How many tokens the model takes."""
    room = getattr(model.config, "max_position_embeddings", None) or _NO_LIMIT
    for name, module in model.named_modules():
        # RoBERTa and its kin number their positions from behind the padding's.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            room -= module.padding_idx + 1
    return int(min(room, tokenizer.model_max_length))
