"""A run's own scoring: every set before and after, what other models and judges say of it, and the attacks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from core.attacks import Target, attacked
from core.data.encode import EncodedSet
from core.data.inputs import Inputs
from core.errors import Diverged, ModelError
from core.evaluation import Evidence, measured, of_attack
from core.evaluation.continuations import continued
from core.evaluation.evidence import Rows
from core.evaluation.judged import judge_answers, judge_toxicity
from core.evaluation.others import COMPARED, check_others, reference_losses, rows_elsewhere, scored_elsewhere
from core.evaluation.rows import RowScore, write_rows
from core.evaluation.score import How, score
from core.events import Emit, StopFlag
from core.parallel.processes import ALONE, Processes
from core.report.schema import Absent, Measurement
from core.spec.job import JobSpec
from core.spec.metrics import OF_ATTACKS
from core.tokens import Encoder

# Sets of passages, which are continued, and of prompts, of which only the answer to them is looked at.
_PASSAGES, _PROMPTS = ("seen", "unseen"), ("harm_prompts", "toxic_prompts")
_WITH_VARIANTS = ("forget", "retain", "real_authors", "world_facts")


def check(spec: JobSpec, inputs: Inputs) -> None:
    """What is wrong with the evaluation that can be seen before a weight is read.

    Raises SpecError, ModelError and DataError.
    """
    check_others(spec, inputs)
    if spec.evaluation.lm_eval is not None:
        from core.evaluation import harness

        harness.check(spec.evaluation.lm_eval)


@dataclass(frozen=True)
class Scorer:
    """Scores every set with the spec's settings, saying how far it is. `folder`: where rows are kept; None: nowhere."""

    spec: JobSpec
    model: PreTrainedModel
    encoder: Encoder
    sets: Mapping[str, EncodedSet]
    emit: Emit
    stop: StopFlag
    world: Processes = ALONE
    inputs: Inputs = field(default_factory=Inputs)
    folder: Path | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    _once: dict[Any, Any] = field(default_factory=dict, repr=False)

    def measure(self, when: str, step: int) -> dict[str, Measurement]:
        """Every metric of every set. Raises Diverged naming the step, or ModelError where that is 0."""
        rows, missing = self.scored(when, step)
        return self.judged(when, rows, missing, self.benchmarks(when))

    def judged(
        self, when: str, rows: Rows, missing: Mapping[str, str], benchmarks: Mapping[str, Measurement]
    ) -> dict[str, Measurement]:
        """Every metric of what was scored, beside the benchmarks; told as scores."""
        self._once["rows", when] = rows
        metrics = measured(Evidence(rows, self._retrained(), missing), self.spec.evaluation.bootstrap)
        metrics |= benchmarks
        metrics |= self._gated_without(metrics)
        self.emit("scores", when=when, metrics={name: m.model_dump() for name, m in metrics.items()})
        return metrics

    def benchmarks(self, when: str) -> dict[str, Measurement]:
        """What lm-eval measures, where it was asked for."""
        evaluation = self.spec.evaluation
        if evaluation.lm_eval is None:
            return {}
        from core.evaluation import harness

        self.emit("phase", phase=f"lm_eval_{when}")
        asked = evaluation.lm_eval

        def run(stop: StopFlag) -> dict[str, Measurement]:
            return harness.run(
                self.model,
                self.encoder.tokenizer,
                asked,
                batch_tokens=evaluation.batch_tokens,
                max_length=self.encoder.max_length,
                resamples=evaluation.bootstrap,
                seed=self.spec.seed,
                stop=stop,
                progress=lambda done, of: self.emit("progress", phase=f"lm_eval_{when}", done=done, total=of),
            )

        return self.world.apart(run, self.stop)

    def attack(self) -> dict[str, Measurement]:
        """What is measured under each attack, by its label; the model is afterwards as it was. Raises Stopped."""
        found: dict[str, Measurement] = {}
        attacks = self.spec.evaluation.attacks
        if attacks:
            self.emit("phase", phase="attacks")
        for i, attack in enumerate(attacks):
            own = self._attacked(attack)
            found |= {f"{attack.label}.{name}": m for name, m in own.items()}
            told = {name: m.model_dump() for name, m in own.items()}
            self.emit("attack", attack=attack.label, metrics=told)
            self.emit("progress", phase="attacks", done=i + 1, total=len(attacks))
        return found

    def _attacked(self, attack: Any) -> Mapping[str, Measurement]:
        if self.world.sharded:
            reason = "attacks need the whole model in one process: run `lethe evaluate` on the delivered model"
            return dict.fromkeys(OF_ATTACKS, Absent(absent=reason))
        how = self.how(variants=False, moments=False)

        def apart(stop: StopFlag) -> Mapping[str, Measurement]:
            def scored(data: EncodedSet) -> list[RowScore]:
                return score(self.model, self.encoder, data, how, stop=stop)

            limit = self.spec.evaluation.max_new_tokens
            rows = attacked(attack, Target(self.model, self.encoder, self.sets, self.spec.seed, stop, scored, limit))
            every = len(self.sets["forget"].records)
            if not isinstance(rows, Absent) and 2 * len(rows) < every:
                rows = Absent(
                    absent=f"only {len(rows)} of {every} forget rows can be scored so, which is less than half"
                )
            if isinstance(rows, Absent):
                return dict.fromkeys(OF_ATTACKS, rows)
            return of_attack(rows, self.spec.evaluation.bootstrap)

        return self.world.apart(apart, self.stop)

    def how(self, **changes: Any) -> How:
        """The spec's settings for one set."""
        of = self.spec.evaluation
        return How(of.batch_tokens, of.max_new_tokens, of.precision, **changes)

    def look(self, name: str, rows: Sequence[int], step: int, how: How) -> list[RowScore]:
        """Scores of some rows of a set, for a look along the way. Raises Diverged."""
        made = score(self.model, self.encoder, self.sets[name], how, stop=self.stop, rows=rows, world=self.world)
        return self._checked(made, step)

    def scored(self, when: str, step: int) -> tuple[dict[str, list[RowScore]], dict[str, str]]:
        """The rows of every set, and why something is not in them, by the field that asks for it. Raises Diverged."""
        phase = f"score_{when}"
        self.emit("phase", phase=phase)
        rows: dict[str, list[RowScore]] = {}
        finished, total = 0, sum(len(s.records) for s in self.sets.values())
        for name, data in self.sets.items():

            def progress(done: int, of: int, base: int = finished, rows: int = len(data.records)) -> None:
                self.emit("progress", phase=phase, done=base + rows * done // max(1, of), total=total)

            rows[name] = self._checked(self._scored(name, data, progress), step)
            finished += len(data.records)
            self.emit("progress", phase=phase, done=finished, total=total)
        missing = self._filled(rows)
        if self.folder is not None and self.spec.evaluation.rows and self.world.first:
            for name, own in rows.items():
                about = {"set": name, "when": when, "step": step, "spec_digest": self.spec.digest(), **self.about}
                write_rows(self.folder / f"{when}-{name}.parquet", own, about)
        self._once["rows", when] = rows
        return rows, missing

    def rows(self, when: str) -> Rows | None:
        """The rows that were scored then, in this process."""
        found: Rows | None = self._once.get(("rows", when))
        return found

    def _scored(self, name: str, data: EncodedSet, progress: Callable[[int, int], None]) -> list[RowScore]:
        if name in _PASSAGES:
            return continued(self.model, self.encoder, data, self.how(), stop=self.stop, world=self.world)
        moments = "holdout" in self.sets and "min_k_plus_plus" in self.spec.evaluation.membership
        how = self.how(
            variants=name in _WITH_VARIANTS,
            moments=moments and name in COMPARED,
            forced=name not in _PROMPTS,
        )
        return score(self.model, self.encoder, data, how, stop=self.stop, progress=progress, world=self.world)

    def _filled(self, rows: Mapping[str, list[RowScore]]) -> dict[str, str]:
        """Put into the rows what judges and other models say; returns why something is not there, by its field."""
        evaluation = self.spec.evaluation
        absent = ("embedder", "classifier", "reference", "retrained")
        missing = {name: f"evaluation.{name} was not given" for name in absent if getattr(evaluation, name) is None}
        if self.world.sharded:
            whole = "it would be whole in every process beside the shards"
            if evaluation.retrained is not None and evaluation.retrained.model is not None:
                missing["retrained"] = f"{whole}: give the rows of scoring it, evaluation.retrained.rows"
            if evaluation.reference is not None:
                missing["reference"] = f"{whole}: run `lethe evaluate` on the delivered model"
        if "grad_norm" not in evaluation.membership:
            missing["membership"] = "evaluation.membership does not ask for grad_norm"
        if evaluation.embedder is not None:
            missing |= judge_answers(evaluation.embedder, rows, self.sets, self.model.device, self.stop, self.world)
        if evaluation.classifier is not None:
            missing |= judge_toxicity(evaluation.classifier, rows, self.model.device, self.stop, self.world)
        if "holdout" not in self.sets:
            return missing
        if evaluation.reference is not None and not self.world.sharded:
            for name, losses in self._reference().items():
                for row, loss in zip(rows[name], losses, strict=True):
                    row.reference_loss = loss
        if "grad_norm" in evaluation.membership:
            missing |= self._grad_norms(rows)
        return missing

    def _grad_norms(self, rows: Mapping[str, list[RowScore]]) -> dict[str, str]:
        from core.evaluation.grad_norm import grad_norms

        if self.world.sharded:
            return {"membership": "norms of gradients need the whole model in one process"}
        for name in COMPARED:
            found = grad_norms(self.model, self.sets[name].examples, self.stop)
            for row, norm in zip(rows[name], found, strict=True):
                row.grad_norm = norm
        return {}

    def _reference(self) -> dict[str, list[float | None]]:
        # They are of these very ids, which another tokenizer or a system prompt changes.
        key = ("reference", *(self.sets[name].examples for name in COMPARED))
        if key not in self._once:
            model = self.spec.evaluation.reference
            assert model is not None
            folder = self.inputs.folder(model, "evaluation.reference")
            how = self.how(variants=False, moments=False, generate=False)
            made = reference_losses(folder, self.encoder, self.sets, how, self.model.device, self.stop)
            self._once[key] = made
        found: dict[str, list[float | None]] = self._once[key]
        return found

    def _retrained(self) -> Rows:
        """Rows of a retrained model, scored or read once."""
        wanted = self.spec.evaluation.retrained
        if wanted is None or (self.world.sharded and wanted.rows is None):
            return {}
        if "retrained" not in self._once:
            if wanted.rows is not None:
                counts = {name: len(data.records) for name, data in self.sets.items()}
                self._once["retrained"] = rows_elsewhere(Path(wanted.rows), counts)
            else:
                assert wanted.model is not None
                folder = self.inputs.folder(wanted.model, "evaluation.retrained.model")
                how = self.how(generate=False, moments=False)
                device = self.model.device
                made = scored_elsewhere(folder, self.encoder, self.sets, how, device, self.stop)
                self._once["retrained"] = made
        found: Rows = self._once["retrained"]
        return found

    def _gated_without(self, metrics: Mapping[str, Measurement]) -> dict[str, Measurement]:
        """A reason for each metric that a gate speaks of and that could not be measured for want of a set."""
        found: dict[str, Measurement] = {}
        for gate in self.spec.gates:
            lacking = [name for name in gate.sets if name not in self.sets]
            for name in (gate.metric, gate.on_holdout):
                if name is not None and name not in metrics and lacking:
                    found[name] = Absent(absent=f"data.{lacking[0]} was not given")
        return found

    def _checked(self, rows: list[RowScore], step: int) -> list[RowScore]:
        # No loss of training follows the last update, so only this would show what it did.
        if wrong := [row.nll for row in rows if not row.finite]:
            if step:
                raise Diverged(step, wrong[0])
            raise ModelError(f"the model as given has a loss of {wrong[0]} on {len(wrong)} records", param="model")
        return rows
