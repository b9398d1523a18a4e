"""ATTACKS: every attack by its spec's name. `attacked` carries one out, has the forget rows scored, and undoes it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.nn import Parameter
from transformers import PreTrainedModel

from core.attacks.noise import noise
from core.attacks.prompts import few_shot, paraphrase, prefix
from core.attacks.quantize import linear_weights, quantize
from core.attacks.relearn import relearn
from core.attacks.target import Target
from core.attacks.untouched import every_weight, no_weight, untouched
from core.data.encode import EncodedSet
from core.evaluation.rows import RowScore
from core.report.schema import Absent
from core.spec.attacks import Attack as AttackSpec


@dataclass(frozen=True)
class Attack:
    """`begin` changes the model, if at all, in the weights that `changes` names, and returns what is to be scored, or
    why nothing is."""

    begin: Callable[[Any, Target], EncodedSet | Absent]
    changes: Callable[[PreTrainedModel], list[Parameter]] = no_weight


ATTACKS: dict[str, Attack] = {
    "relearn": Attack(relearn, every_weight),
    "quantize": Attack(quantize, linear_weights),
    "paraphrase": Attack(paraphrase),
    "prefix": Attack(prefix),
    "few_shot": Attack(few_shot),
    "noise": Attack(noise, every_weight),
}


def attacked(spec: AttackSpec, target: Target) -> list[RowScore] | Absent:
    """Scores of the forget rows under the attack, or why there are none; the model is afterwards as it was.

    Raises Stopped, and whatever the target's `score` raises.
    """
    attack = ATTACKS[spec.name]
    with untouched(target.model, attack.changes(target.model)):
        asked = attack.begin(spec, target)
        rows = asked if isinstance(asked, Absent) else target.score(asked)
    if isinstance(rows, Absent):
        return rows
    if wrong := sum(not row.finite for row in rows):
        return Absent(absent=f"under this attack the loss of {wrong} of {len(rows)} forget rows is not a finite number")
    return rows


__all__ = ["ATTACKS", "Attack", "Target", "attacked"]
