"""NEEDS: what an objective may ask to see beyond the current model's log-probabilities, in words."""

from typing import Literal

Need = Literal["reference_sums", "reference_logits", "layer", "reference_layer", "alternative"]

NEEDS: dict[Need, str] = {
    "reference_sums": "the reference's likelihood of each answer",
    "reference_logits": "the reference's whole predictions",
    "layer": "hidden states of one layer",
    "reference_layer": "the reference's hidden states of that layer",
    "alternative": "another answer to each prompt",
}
