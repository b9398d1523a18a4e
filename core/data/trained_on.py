"""What each set's rows are in training: themselves, or the forget prompts with another answer than the true one."""

from collections.abc import Mapping, Sequence

from core.data.encode import EncodedSet
from core.data.refusals import (
    REFUSALS,
    alternatives,
    check_alternatives,
    check_prompts,
    read_refusals,
    refused,
    relabelled,
)
from core.methods import METHODS
from core.objective import ALTERNATIVE
from core.spec.job import JobSpec
from core.spec.records import Record
from core.tokens import Encoder, Example


def check_records(spec: JobSpec, sets: Mapping[str, Sequence[Record]]) -> None:
    """Raises DataError for what `trained_on` can be seen to lack without a tokenizer: prompts, answers, refusals."""
    method = METHODS[spec.method.name]
    if method.looks_at != "forget" or "alternative" in method.needs:
        check_prompts(sets["forget"])
    if getattr(spec.method, "alternative", "refusal") != "refusal":
        check_alternatives(sets["forget"])
    _sentences(spec)


def trained_on(spec: JobSpec, sets: Mapping[str, EncodedSet], encoder: Encoder) -> dict[str, tuple[Example, ...]]:
    """`forget`, `retain` and, for a method that compares two answers, `alternative`. Raises DataError."""
    examples = {name: s.examples for name, s in sets.items()}
    method = METHODS[spec.method.name]
    if method.looks_at == "refusal":
        examples["forget"] = refused(sets["forget"].records, _sentences(spec), encoder, spec.seed)
    if method.looks_at == "random_label":
        examples["forget"] = relabelled(sets["forget"].records, sets["retain"].records, encoder, spec.seed)
    if "alternative" in method.needs:
        if getattr(spec.method, "alternative", "refusal") == "refusal":
            examples[ALTERNATIVE] = refused(sets["forget"].records, _sentences(spec), encoder, spec.seed)
        else:
            examples[ALTERNATIVE] = alternatives(sets["forget"].records, encoder, spec.seed)
    return examples


def _sentences(spec: JobSpec) -> list[str]:
    file = getattr(spec.method, "refusals_file", None)
    return read_refusals(file) if file else list(getattr(spec.method, "refusals", None) or REFUSALS)
