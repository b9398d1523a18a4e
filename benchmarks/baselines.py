"""How others run an unlearning step: `plain` after SOUL's way of working, `careful` after open-unlearning's.

Written for comparison against torch and transformers alone. Both normalise by the whole step's answer tokens, as Lethe
does, so that all three make the same update.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid, mse_loss
from transformers import PreTrainedModel

NPO_BETA = 0.1
RMU_SCALE = 20.0
RMU_RETAIN_WEIGHT = 100.0
CURVATURE_EVERY = 10
IGNORED = -100


@dataclass(frozen=True)
class Case:
    """One line of the table: a forget term, a retain term, and the rows that `careful` runs at a time."""

    forget: str
    retain: str
    rows: int


CASES = {
    "graddiff_1x4": Case("ascent", "nll", 1),
    "graddiff_4x1": Case("ascent", "nll", 4),
    "npo_1x4": Case("npo", "nll", 1),
    "npo_4x1": Case("npo", "nll", 4),
    "kl_1x4": Case("ascent", "kl", 1),
    "rmu_1x4": Case("rmu", "hidden", 1),
}


class Row(Protocol):
    """Ids of a prompt and its answer; the answer is `ids[start:]`."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def start(self) -> int: ...


def rmu_layer(layers: int) -> int:
    """The layer whose output RMU steers, counted from 0: at a quarter of the depth, at least 2 (7 of 32)."""
    return max(2, layers // 4 - 1)


def rmu_trains(name: str, layer: int) -> bool:
    """Whether RMU trains the parameter of this name: `mlp.down_proj` of the steered layer and the two before."""
    return any(f"layers.{i}.mlp.down_proj." in name for i in range(layer - 2, layer + 1))


class PlainSophia(torch.optim.Optimizer):
    """Sophia with Gauss-Newton-Bartlett curvature (arXiv:2305.14342), parameter by parameter in ordinary operations."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.96, 0.99), "gamma": 0.05, "eps": 1e-12, "decay": 0.1})

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state["m"], state["h"] = torch.zeros_like(p), torch.zeros_like(p)
        return state

    @torch.no_grad()
    def estimate(self, positions: int) -> None:
        """Take in the sampled-label gradients that lie in `.grad`, of so many positions."""
        for group in self.param_groups:
            b2 = group["betas"][1]
            for p in group["params"]:
                if p.grad is not None:
                    self._state(p)["h"].mul_(b2).addcmul_(p.grad, p.grad, value=(1 - b2) * positions)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One update."""
        for group in self.param_groups:
            b1 = group["betas"][0]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self._state(p)
                m = state["m"].mul_(b1).add_(p.grad, alpha=1 - b1)
                p.mul_(1 - group["lr"] * group["decay"])
                ratio = (m.abs() / (group["gamma"] * state["h"]).clamp(min=group["eps"])).clamp(max=1)
                p.addcmul_(m.sign(), ratio, value=-group["lr"])


BASELINE_OPTIMIZERS: dict[str, Callable[[Iterable[Tensor], float], torch.optim.Optimizer]] = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.01),
    "sophia_g": PlainSophia,
}


class Baseline:
    """An unlearning step with forget and retain in forwards of their own, logits at every position, and the reference
    run again every time.

    `rows_of` gives the rows of a step by set; `rows`: how many of a set run at a time; `width`: what every row is
    padded to, None for the longest of its batch. `steer`: RMU's unit vector, (hidden,). `autocast`: forwards in bf16.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows_of: Callable[[int], Mapping[str, Sequence[Row]]],
        case: Case,
        *,
        rows: int,
        width: int | None,
        optimizer: str,
        lr: float,
        steer: Tensor | None = None,
        autocast: bool = False,
    ) -> None:
        self.model, self.rows_of, self.case, self.rows, self.width = model, rows_of, case, rows, width
        self.steer, self.autocast = steer, torch.autocast(model.device.type, torch.bfloat16, enabled=autocast)
        self.layer = rmu_layer(model.config.num_hidden_layers)
        if case.forget == "rmu":
            for name, p in model.named_parameters():
                p.requires_grad_(rmu_trains(name, self.layer))
        needs_reference = case.forget == "npo" or case.retain in ("kl", "hidden")
        self.reference = copy.deepcopy(model).requires_grad_(False) if needs_reference else None
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = BASELINE_OPTIMIZERS[optimizer](self.parameters, lr)

    def step(self, step: int) -> tuple[float, float]:
        """One optimizer step; returns the weighted losses of the forget and the retain set."""
        sets = self.rows_of(step)
        tokens = {name: sum(len(r.ids) - r.start for r in rows) for name, rows in sets.items()}
        if isinstance(self.optimizer, PlainSophia) and step % CURVATURE_EVERY == 0:
            self._estimate_curvature(self.optimizer, sets["retain"], tokens["retain"])
        self.optimizer.zero_grad()
        losses = (0.0, 0.0)
        for forget, retain in zip(self._batches(sets["forget"]), self._batches(sets["retain"]), strict=True):
            with self.autocast:
                pull = self._forget(forget, tokens["forget"], len(sets["forget"]))
                hold = self._retain(retain, tokens["retain"])
            (pull + hold).backward()
            losses = (losses[0] + pull.item(), losses[1] + hold.item())
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return losses

    def _batches(self, rows: Sequence[Row]) -> Iterable[dict[str, Tensor]]:
        for i in range(0, len(rows), self.rows):
            yield collate(rows[i : i + self.rows], self.width, self.model.device)

    def _forget(self, batch: dict[str, Tensor], tokens: int, rows: int) -> Tensor:
        if self.case.forget == "ascent":
            return -self._mean_nll(batch, tokens)
        if self.case.forget == "npo":
            assert self.reference is not None
            with torch.no_grad():
                reference = sequence_nll(self.reference, batch)
            pull = NPO_BETA * (sequence_nll(self.model, batch) - reference)
            return -2 / NPO_BETA * logsigmoid(pull).sum() / rows
        assert self.steer is not None
        states = self._states(self.model, batch)
        return mse_loss(states, (RMU_SCALE * self.steer).expand_as(states), reduction="sum") / tokens / states.shape[1]

    def _retain(self, batch: dict[str, Tensor], tokens: int) -> Tensor:
        if self.case.retain == "nll":
            return self._mean_nll(batch, tokens)
        assert self.reference is not None
        if self.case.retain == "kl":
            counted = batch["labels"][:, 1:] != IGNORED
            with torch.no_grad():
                reference = log_softmax(_logits(self.reference, batch)[:, :-1].float(), dim=-1)
            current = log_softmax(_logits(self.model, batch)[:, :-1].float(), dim=-1)
            return (((reference.exp() * (reference - current)).sum(-1)) * counted).sum() / tokens
        with torch.no_grad():
            target = self._states(self.reference, batch)
        states = self._states(self.model, batch)
        return RMU_RETAIN_WEIGHT * mse_loss(states, target, reduction="sum") / tokens / states.shape[1]

    def _mean_nll(self, batch: dict[str, Tensor], tokens: int) -> Tensor:
        """transformers' own loss, as a part of the step's mean."""
        loss: Tensor = self.model(**batch, num_items_in_batch=tokens).loss
        return loss

    def _states(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
        """The steered layer's output where answer tokens are predicted, (tokens, hidden), from a run of the whole."""
        seen: list[Tensor] = []

        def keep(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        layers: Any = model.base_model.layers
        hook = layers[self.layer].register_forward_hook(keep)
        _logits(model, batch)
        hook.remove()
        return seen[0][:, :-1][batch["labels"][:, 1:] != IGNORED]

    def _estimate_curvature(self, optimizer: PlainSophia, rows: Sequence[Row], positions: int) -> None:
        """Gradients against labels drawn from the model itself, over the retain rows of the step."""
        optimizer.zero_grad()
        for batch in self._batches(rows):
            with self.autocast:
                logits = _logits(self.model, batch)[:, :-1].float()
            labels = torch.distributions.Categorical(logits=logits.detach()).sample()
            labels[batch["labels"][:, 1:] == IGNORED] = IGNORED
            loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
            (loss / positions).backward()
        optimizer.estimate(positions)


def collate(rows: Sequence[Row], width: int | None, device: Any) -> dict[str, Tensor]:
    """Rows padded on the right, with an attention mask, and labels that ignore prompt and padding: (rows, time)."""
    width = max(len(r.ids) for r in rows) if width is None else width
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for i, r in enumerate(rows):
        ids[i, : len(r.ids)] = torch.tensor(r.ids)
        mask[i, : len(r.ids)] = 1
        labels[i, r.start : len(r.ids)] = torch.tensor(r.ids[r.start :])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}


def sequence_nll(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """S, each row's summed NLL of its answer: (rows,). With the vocabulary in the middle, as both codebases have it."""
    logits = _logits(model, batch)[:, :-1].float()
    nll = cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], ignore_index=IGNORED, reduction="none")
    return nll.sum(dim=1)


def _logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    logits: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits


def plain(model: PreTrainedModel, rows_of: Any, case: Case, *, width: int = 512, **settings: Any) -> Baseline:
    """One row at a time, all padded to the same width."""
    return Baseline(model, rows_of, case, rows=1, width=width, **settings)


def careful(model: PreTrainedModel, rows_of: Any, case: Case, **settings: Any) -> Baseline:
    """As many rows at a time as the case says, padded to the longest."""
    return Baseline(model, rows_of, case, rows=case.rows, width=None, **settings)
