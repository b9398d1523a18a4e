"""The frozen original model, never run twice: what the objectives need of it is computed once, before training.

S_ref is one number a row. For full-logit terms the last hidden states at answer positions are kept instead of logits
(hidden-size numbers a token instead of vocabulary-size), with a frozen head; for `hidden` those of an inner layer.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.data.batches import by_length
from core.device import on_device, sent
from core.events import StopFlag
from core.forward import collate, finish_logits, head, packs, states
from core.methods import Need
from core.parallel.processes import ALONE, Processes
from core.parallel.sharding import whole
from core.tokens import Example
from core.views import in_chunks


@dataclass
class Reference:
    """`sums[set]`: (rows,) sequence NLL of every row. `hidden[set][row]`: (answer tokens, hidden) of rows asked for."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    hidden: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    frozen_head: torch.nn.Module | None = None
    config: Any = None

    def states(self, set_name: str, rows: Sequence[int], device: torch.device) -> Tensor:
        """Hidden states of the rows' answer tokens, row by row: (tokens, hidden)."""
        return sent(torch.cat([self.hidden[set_name][row] for row in rows]), device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Reference logits of those hidden states: (tokens, vocab), fp32."""
        assert self.frozen_head is not None
        return finish_logits(self.config, self.frozen_head(hidden))

    def tensors(self) -> dict[str, Tensor]:
        """As one flat dict of tensors, for a checkpoint. The head is not among them: the original model has it."""
        flat = {f"sums/{name}": sums for name, sums in self.sums.items()}
        for name, rows in self.hidden.items():
            for row, kept in rows.items():
                flat[f"hidden/{name}/{row}"] = kept
        return flat

    def load(self, flat: dict[str, Tensor], model: PreTrainedModel) -> None:
        """The inverse of `tensors`; `model` must still be the original."""
        for key, tensor in flat.items():
            kind, name, *row = key.split("/")
            if kind == "sums":
                self.sums[name] = tensor.to(model.device)
            else:
                self.hidden.setdefault(name, {})[int(row[0])] = tensor
        if self.hidden:
            self.freeze_head(model)

    def freeze_head(self, model: PreTrainedModel) -> None:
        """Keep the head as it is now: a copy where training will move it."""
        live = model.get_output_embeddings()
        moves = any(p.requires_grad for p in live.parameters())
        self.frozen_head = _copied(live) if moves else live
        self.config = model.config.get_text_config()


def _copied(live: torch.nn.Module) -> torch.nn.Module:
    """A frozen copy, whole where the live one is sharded."""
    copied = copy.deepcopy(live)
    for module in copied.modules():
        for name, p in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(whole(p)))
    return copied.requires_grad_(False)


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


@torch.no_grad()
def add_sums(
    reference: Reference,
    name: str,
    model: PreTrainedModel,
    examples: Sequence[Example],
    tokens: int,
    stop: StopFlag,
    world: Processes = ALONE,
) -> None:
    """S_ref of every example, with at most `tokens` tokens a pass. Processes that can share the rows do."""
    sums = torch.zeros(len(examples), device=model.device)
    batches = by_length(range(len(examples)), lambda i: len(examples[i].ids), tokens, packed=packs(model))
    for _, rows in world.turns(batches):
        stop.check()
        if rows is None:
            continue
        batch = collate(model, [examples[i] for i in rows])
        last = states(model, batch).last
        assert last is not None
        vocabulary = model.config.get_text_config().vocab_size
        nll = in_chunks(_nll, partial(head, model), vocabulary, last, batch.targets)
        sums.index_add_(0, on_device(rows, model.device)[batch.row], nll)
    reference.sums[name] = sums if world.sharded else world.sum(sums)


@torch.no_grad()
def add_hidden(
    reference: Reference,
    name: str,
    model: PreTrainedModel,
    examples: Sequence[Example],
    rows: Collection[int],
    tokens: int,
    stop: StopFlag,
    layer: int | None = None,
) -> None:
    """Hidden states at the answer positions of the given rows: the last ones, or those of a layer."""
    kept: dict[int, Tensor] = {}
    for group in by_length(sorted(rows), lambda i: len(examples[i].ids), tokens, packed=packs(model)):
        stop.check()
        made = states(model, collate(model, [examples[i] for i in group]), layer=layer, last=layer is None)
        found = made.last if layer is None else made.layer
        assert found is not None
        if layer is None and torch.is_autocast_enabled(found.device.type):
            # The head would round them anyway; half the memory, and half the checkpoint.
            found = found.to(torch.bfloat16)
        for row, part in zip(group, found.split([examples[i].answer_tokens for i in group]), strict=True):
            # In main memory: those of a large retain set would not fit beside the model.
            kept[row] = part.cpu().clone()
    reference.hidden[name] = kept
    if layer is None:
        reference.freeze_head(model)


def observe(
    reference: Reference,
    needs: Mapping[str, frozenset[Need]],
    model: PreTrainedModel,
    sets: Mapping[str, Sequence[Example]],
    rows: Mapping[str, Collection[int]],
    layer: int | None,
    tokens: int,
    stop: StopFlag,
    world: Processes = ALONE,
) -> None:
    """Everything that the sets need of the model as it is now. `rows`: those of each set that the run will see."""
    for name, wanted in needs.items():
        if "reference_sums" in wanted:
            add_sums(reference, name, model, sets[name], tokens, stop, world)
        if "reference_logits" in wanted:
            add_hidden(reference, name, model, sets[name], rows[name], tokens, stop)
        if "reference_layer" in wanted:
            add_hidden(reference, name, model, sets[name], rows[name], tokens, stop, layer)
