"""What an edit of the weights is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from core.data.encode import EncodedSet
from core.data.inputs import Inputs
from core.events import Emit, StopFlag
from core.spec.job import JobSpec


@dataclass(frozen=True)
class Context:
    """The model in training, the folder it came from, and the sets as they were encoded."""

    spec: JobSpec
    model: PreTrainedModel
    folder: Path
    inputs: Inputs
    sets: Mapping[str, EncodedSet]
    emit: Emit
    stop: StopFlag
