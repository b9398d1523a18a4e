"""The frozen original model, never run twice: what the objectives need of it is computed once, before training.

S_ref is one number a row. For full-logit terms the last hidden states at answer positions are kept instead of logits
(hidden-size numbers a token instead of vocabulary-size), with a frozen copy of the head.
"""

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from core.data.batches import by_length
from core.events import StopFlag
from core.model import head, hidden_states
from core.tokens import Example, pad


@dataclass
class Reference:
    """`sums[set]`: (rows,) sequence NLL of every row. `hidden[set][row]`: (answer tokens, hidden) of rows asked for."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    hidden: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    frozen_head: torch.nn.Module | None = None

    def logits(self, set_name: str, rows: Sequence[int]) -> Tensor:
        """Reference logits of the rows' answer tokens, row by row: (tokens, vocab), fp32, without gradient."""
        assert self.frozen_head is not None
        states = torch.cat([self.hidden[set_name][row] for row in rows])
        with torch.no_grad():
            logits: Tensor = self.frozen_head(states.to(next(self.frozen_head.parameters()).device)).float()
        return logits

    def tensors(self) -> dict[str, Tensor]:
        """As one flat dict of tensors, for a checkpoint. The head is not among them: the original model has it."""
        flat = {f"sums/{name}": sums for name, sums in self.sums.items()}
        for name, rows in self.hidden.items():
            for row, states in rows.items():
                flat[f"hidden/{name}/{row}"] = states
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
        """Keep a copy of the head as it is now."""
        self.frozen_head = copy.deepcopy(model.get_output_embeddings()).requires_grad_(False)


@torch.no_grad()
def add_sums(
    reference: Reference, name: str, model: PreTrainedModel, examples: Sequence[Example], tokens: int, stop: StopFlag
) -> None:
    """S_ref of every example, with at most `tokens` padded tokens a pass."""
    sums = torch.zeros(len(examples), device=model.device)
    for batch in by_length(range(len(examples)), lambda i: len(examples[i].ids), tokens):
        stop.check()
        padded = pad([examples[i] for i in batch], model.device)
        logits = head(model, hidden_states(model, padded))
        nll = torch.nn.functional.cross_entropy(logits, padded.targets, reduction="none")
        of_row = torch.tensor(batch, device=model.device)[padded.at_row]
        sums.index_add_(0, of_row, nll)
    reference.sums[name] = sums


@torch.no_grad()
def add_hidden(
    reference: Reference,
    name: str,
    model: PreTrainedModel,
    examples: Sequence[Example],
    rows: Collection[int],
    tokens: int,
    stop: StopFlag,
) -> None:
    """Hidden states at the answer positions of the given rows."""
    kept: dict[int, Tensor] = {}
    for batch in by_length(sorted(rows), lambda i: len(examples[i].ids), tokens):
        stop.check()
        padded = pad([examples[i] for i in batch], model.device)
        states = hidden_states(model, padded)
        for row, part in zip(batch, states.split([examples[i].answer_tokens for i in batch]), strict=True):
            # In main memory: those of a large retain set would not fit beside the model.
            kept[row] = part.cpu().clone()
    reference.hidden[name] = kept
    reference.freeze_head(model)
