"""What is told to whoever runs the service of an engine at work: its milestones as log lines, its phases as metrics.

Only names of ours and numbers: an engine's words may quote what it works on.
"""

import structlog

from worker import meter
from worker.engine import Event

log = structlog.get_logger()

_TOLD = {  # which fields of an event are of ours
    "phase": ("phase",),
    "checkpoint": ("step",),
    "scores": ("when",),
    "attack": ("attack",),
    "done": (),
    "error": ("code", "retryable"),
}


class Milestones:
    """Listens to one engine, from its command to its end."""

    def __init__(self, engine: int) -> None:
        """`engine` is its process id."""
        self._engine = engine
        self.seconds: dict[str, float] = {}  # of each phase that has ended, by the engine's clock
        self._phase: tuple[str, float] | None = None  # the present one, and when it began by the engine's clock
        meter.LIVE.renewed(engine)

    def hear(self, kind: str, event: Event) -> None:
        """Take note of an event."""
        if kind not in _TOLD:
            return
        at = event.get("at")
        if kind in ("phase", "done", "error") and at is not None:
            self._begin(event.get("phase"), float(at))
        fields = {name: event[name] for name in _TOLD[kind] if name in event}
        log.info(f"engine: {kind}", part="engine", engine=self._engine, **fields)

    def renewed(self) -> None:
        """The attempt's lease was renewed."""
        meter.LIVE.renewed(self._engine)

    def ended(self) -> None:
        """The engine is no more."""
        meter.LIVE.ended(self._engine)

    def _begin(self, phase: str | None, at: float) -> None:
        if self._phase is not None:
            name, since = self._phase
            passed = max(0.0, at - since)
            self.seconds[name] = self.seconds.get(name, 0.0) + passed
            meter.PHASES.labels(name).observe(passed)
        self._phase = (phase, at) if phase else None
