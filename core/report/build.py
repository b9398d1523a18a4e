"""Puts a report together from what a run measured; adds the verdict and the plain words on what it does not prove."""

from collections.abc import Mapping

from core.report.digest import model_digest
from core.report.schema import Absent, DataUsed, Environment, Measurement, Report, TrainingDone
from core.report.verdict import judge
from core.spec.job import JobSpec

LIMITATIONS = (
    "Approximate unlearning is measured, not proven: it is no certified removal.",
    "The metrics speak of the forget set as given; other wordings of the same facts were not tried.",
    "No attack that tries to bring the knowledge back was run.",
    "Intervals are over rows of the sets used; they do not cover another seed or another set.",
)
_UNCHANGED = "The weights were not changed: whoever holds them holds what they know."
_UNCHANGING = frozenset({"guard", "origin"})
_NO_KEY = Absent(absent="run without the service: the set has no key of its own")


def build(
    spec: JobSpec,
    *,
    started_at: str,
    finished_at: str,
    input_model: str,
    output_files: Mapping[str, str],
    sets: Mapping[str, tuple[int, int, list[int]]],
    commitments: Mapping[str, str],
    before: Mapping[str, Measurement],
    after: Mapping[str, Measurement],
    training: TrainingDone,
    environment: Environment,
) -> Report:
    """`sets` gives rows, answer tokens and the positions of records that did not fit; times are RFC 3339 UTC."""
    used = {
        name: DataUsed(rows=rows, answer_tokens=tokens, too_long=too_long, commitment=commitments.get(name) or _NO_KEY)
        for name, (rows, tokens, too_long) in sets.items()
    }
    return Report(
        spec=spec.model_dump(mode="json"),
        spec_digest=spec.digest(),
        seed=spec.seed,
        started_at=started_at,
        finished_at=finished_at,
        input_model=input_model,
        output_model=model_digest(output_files),
        output_files=dict(output_files),
        forget=used["forget"],
        retain=used.get("retain") or Absent(absent="no retain set was given"),
        before=dict(before),
        after=dict(after),
        training=training,
        verdict=judge(spec.gates, before, after),
        environment=environment,
        limitations=[*LIMITATIONS, *([_UNCHANGED] if spec.method.name in _UNCHANGING else [])],
    )
