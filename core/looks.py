"""What a look along the way amounts to: how much was forgotten, whether the budget is kept, whether it is enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from core.report.schema import Measured, Measurement
from core.report.verdict import apply, beyond, observed
from core.spec.gates import Gate

Look = dict[str, float]
Values = Mapping[str, Measured]


@dataclass(frozen=True)
class Bar:
    """The gates of a look: `quick` are asked at each, `slow` of generated texts, `budget` where none else is there."""

    quick: Sequence[Gate]
    slow: Sequence[Gate]
    budget: Sequence[Gate]

    def judged(self, values: Values, earlier: Sequence[Look], texts: bool) -> Look:
        """`forgetting` (0 to 1), `within_budget`, `texts`, `enough`, beside the values themselves; `earlier`: the looks
        before this one, of which the first is of the model as it was given.

        Inside the budget is a look on which every gate that is not about forgetting was seen to hold: where one is on
        texts, a look that asked for none is not. `enough` takes every quick gate to hold with a standard error to
        spare, or with its whole interval where it asks for that: values that just touch their bounds on a few rows may
        fail on all of them.
        """
        numbers = {name: m.value for name, m in values.items()}
        before, exact, now = _exact(earlier[0] if earlier else numbers), _exact(numbers), dict(values)
        forgets = [gate for gate in self.quick if gate.speaks_of_forgetting]
        keeps = [*(gate for gate in self.quick if gate not in forgets), *self.budget]
        said = [gate for gate in self.slow if not gate.speaks_of_forgetting]
        progress = [_progress(gate, before, exact) for gate in forgets]
        forgetting = sum(progress) / len(progress)
        within = all(_holds(gate, before, exact) for gate in keeps) and all(_holds(gate, before, now) for gate in said)
        sure = all(_surely(gate, before, now) for gate in (*forgets, *keeps))
        done = bool(earlier) and forgetting == 1 and within and sure
        return {
            **numbers,
            "forgetting": forgetting,
            "within_budget": float(within),
            "texts": float(texts),
            "enough": float(done and all(_holds(gate, before, now) for gate in self.slow)),
        }

    def worth_texts(self, values: Values, looks: Sequence[Look], most: float, last: bool) -> bool:
        """Whether texts shall be generated at the look after these, of which `values` are known without any.

        They are where they alone keep training from its end; and where they alone, being of the budget, keep the look
        from being delivered, `most` being the most forgetting before it. Each time doubles the wait for the next, but
        the `last` look of all does not wait.
        """
        known = replace(self, slow=()).judged(values, looks, texts=False)
        asked = [i for i, look in enumerate(looks) if look["texts"] and i]
        ending = [i for i in asked if looks[i]["forgetting"] == 1]
        ends = bool(known["enough"]) and _due(len(looks), ending)
        of_budget = any(not gate.speaks_of_forgetting for gate in self.slow)
        delivered = of_budget and bool(known["within_budget"]) and known["forgetting"] >= most
        return ends or (delivered and (last or _due(len(looks), asked)))


def _due(at: int, asked: Sequence[int]) -> bool:
    return not asked or at - asked[-1] >= 2 ** (len(asked) - 1)


def _exact(values: Mapping[str, float]) -> dict[str, Measurement]:
    return {name: Measured(value=value, rows=1, low=None, high=None) for name, value in values.items()}


def _holds(gate: Gate, before: Mapping[str, Measurement], now: Mapping[str, Measurement]) -> bool:
    whole = gate.interval and isinstance(m := now.get(gate.metric), Measured) and m.low is not None
    return apply(gate.model_copy(update={"interval": whole}), before, now).outcome == "held"


def _surely(gate: Gate, before: Mapping[str, Measurement], now: Mapping[str, Measurement]) -> bool:
    share = 1.0 if gate.interval else 0.5
    narrowed = {name: _narrowed(m, share) for name, m in now.items() if isinstance(m, Measured)}
    return apply(gate.model_copy(update={"interval": True}), before, narrowed).outcome == "held"


def _narrowed(m: Measured, share: float) -> Measurement:
    """The interval, to so much of its width: half a 95% interval is about a standard error to each side."""
    if m.low is None or m.high is None:
        return m
    low, high = (m.value + share * (end - m.value) for end in (m.low, m.high))
    return Measured(value=m.value, rows=m.rows, low=low, high=high)


def _progress(gate: Gate, before: Mapping[str, Measurement], now: Mapping[str, Measurement]) -> float:
    """How far the gate has come from where it stood at first: 1 where it holds, 0 where nothing was gained."""
    value, first = observed(gate, before, now), observed(gate, before, before)
    if value is None or first is None:
        return 0.0
    left, at_first = beyond(gate, value), beyond(gate, first)
    if left <= 0:
        return 1.0
    return max(0.0, 1 - left / at_first) if at_first > 0 else 0.0
