"""The metrics a gate may speak of: which set, which way is better, and what each one means. No torch here."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricInfo:
    """`better` says which way is good for the requester: lower on the forget set means forgotten.

    No model scores below `lowest` or above `highest` (absent: no limit).
    """

    title: str
    set: Literal["forget", "retain"]
    better: Literal["lower", "higher"]
    meaning: str
    citation: str = ""
    lowest: float = 0.0
    highest: float | None = 1.0


_PER_SET = {
    "probability": ("Probability", "mean over rows of exp(-NLL/token) of the true answer, end of sequence included"),
    "rouge_l": ("ROUGE-L recall", "mean over rows of ROUGE-L recall of the greedy answer against the true one"),
    "truth_ratio": ("Truth ratio", "TOFU's: paraphrased against perturbed answers, as the set's published aggregate"),
    "exact_memorization": ("Exact memorization", "mean share of answer tokens where teacher-forced argmax is right"),
}

METRICS: dict[str, MetricInfo] = {
    # On forget, TOFU's truth ratio rises as the model stops preferring the truth to its perturbations.
    f"{split}.{name}": MetricInfo(
        title,
        split,
        "higher" if (split == "retain") != (name == "truth_ratio" and split == "forget") else "lower",
        meaning,
        "arXiv:2401.06121" if name != "exact_memorization" else "arXiv:2202.07646",
    )
    for split in ("forget", "retain")
    for name, (title, meaning) in _PER_SET.items()
}
METRICS["retain.perplexity"] = MetricInfo(
    "Perplexity", "retain", "lower", "exp of the mean answer-token NLL over all retain rows", lowest=1.0, highest=None
)
