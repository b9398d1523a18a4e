"""Every method by name, and the names under which they were published, each a forget term with its retain term."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from core.spec import edits, terms
from core.spec.retain import named

FORGET_TERMS: dict[str, type[terms.MethodSpec]] = {
    "ascent": terms.Ascent,
    "wga": terms.Wga,
    "satimp": terms.SatImp,
    "npo": terms.Npo,
    "simnpo": terms.SimNpo,
    "dpo": terms.Dpo,
    "refusal": terms.Refusal,
    "random_label": terms.RandomLabel,
    "ce_ref_forget": terms.CeRefForget,
    "undial": terms.Undial,
    "ce_u": terms.CeU,
    "max_entropy": terms.MaxEntropy,
    "ihl": terms.Ihl,
    "logit_flat": terms.LogitFlat,
    "rmu": terms.Rmu,
    "zero": terms.Zero,
    "task_vector": edits.TaskVector,
    "influence": edits.Influence,
    "retrain": edits.Retrain,
    "guard": edits.Guard,
    "origin": edits.Origin,
}

_NLL: dict[str, Any] = {"name": "nll"}
_CE_REF: dict[str, Any] = {"name": "ce_ref"}
_NLL_RISING: dict[str, Any] = {"name": "nll", "schedule": {"name": "linear"}}
_CE_REF_RISING: dict[str, Any] = {"name": "ce_ref", "schedule": {"name": "linear"}}
# SOUL published no strength for its l1 penalty. At this one its gradient is about as long as a clipped one at 7B.
_L1 = 1e-5

ALIASES: dict[str, dict[str, Any]] = {
    # SOUL (arXiv:2404.18239); its `origin` goes by that name here too.
    "FT": {"name": "zero", "retain": _NLL},
    "l1_sparse": {"name": "zero", "l1": _L1, "retain": _NLL},
    "l1sparse": {"name": "zero", "l1": _L1, "retain": _NLL},
    "GA": {"name": "ascent"},
    "GA+FT": {"name": "ascent", "retain": _NLL},
    "GA+KL": {"name": "ascent", "retain": _CE_REF},
    "GA_FT_epoch": {"name": "ascent", "retain": _NLL_RISING},
    "GA_KL_epoch": {"name": "ascent", "retain": _CE_REF_RISING},
    "CL": {"name": "refusal"},
    "CL+FT": {"name": "refusal", "retain": _NLL},
    "CL+KL": {"name": "refusal", "retain": _CE_REF},
    "CL_FT_epoch": {"name": "refusal", "retain": _NLL_RISING},
    "PO": {"name": "refusal", "retain": _NLL},
    "RL": {"name": "random_label"},
    "KL": {"name": "ce_ref_forget", "retain": _CE_REF},
    "sys": {"name": "guard"},
    # Both; open-unlearning's names of the rest.
    "GradDiff": {"name": "ascent", "retain": _NLL},
    "NPO": {"name": "npo", "retain": _NLL},
    "GradAscent": {"name": "ascent"},
    "SimNPO": {"name": "simnpo", "retain": _NLL},
    "DPO": {"name": "dpo", "retain": _NLL},
    "RMU": {"name": "rmu", "retain": {"name": "hidden"}},
    "UNDIAL": {"name": "undial"},
    "CE-U": {"name": "ce_u"},
    "WGA": {"name": "wga", "retain": _NLL},
    "SatImp": {"name": "satimp", "weight": 0.1, "retain": _NLL},
    "PDU": {"name": "logit_flat", "retain": {"name": "nll", "schedule": {"name": "primal_dual"}}},
}


def _expanded(value: Any) -> Any:
    """`"GradDiff"` and `{"name": "GradDiff", "weight": 2}` both become the method they stand for; own fields win."""
    value = named(value)
    if isinstance(value, dict) and isinstance(value.get("name"), str) and value["name"] in ALIASES:
        alias = ALIASES[value["name"]]
        own = {k: v for k, v in value.items() if k != "name"}
        retain = own.get("retain")
        if isinstance(retain, dict) and "name" not in retain and "retain" in alias:
            own["retain"] = {**alias["retain"], **retain}
        return {**alias, **own}
    return value


Method = Annotated[
    terms.Ascent
    | terms.Wga
    | terms.SatImp
    | terms.Npo
    | terms.SimNpo
    | terms.Dpo
    | terms.Refusal
    | terms.RandomLabel
    | terms.CeRefForget
    | terms.Undial
    | terms.CeU
    | terms.MaxEntropy
    | terms.Ihl
    | terms.LogitFlat
    | terms.Rmu
    | terms.Zero
    | edits.TaskVector
    | edits.Influence
    | edits.Retrain
    | edits.Guard
    | edits.Origin,
    Field(discriminator="name"),
    BeforeValidator(_expanded),
]
