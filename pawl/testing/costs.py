"""What a simulated engine takes its steps to cost, beside an account of the same steps that shares no code with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

from pawl.lifecycle.properties.bounded_gaps import BoundedGaps
from pawl.lifecycle.step_times import StepTimes
from pawl.loops.loop import Loop

MEASURED_EVERY = 64
ROUNDING = 1e-9
"""Of what is added up in another order."""


class _Step(NamedTuple):
    launched_at: float
    decoding: int
    prompts: int
    seconds: float = 0.0


class _Learned(NamedTuple):
    """What the steps so far say."""

    alone: int = 0
    alone_s: float = 0.0
    positions: float = 0.0
    seconds: float = 0.0
    mixed: int = MEASURED_EVERY

    def without_prompts(self, decoding: int) -> float:
        """Seconds of a step in which so many requests decode, and nothing else is computed."""
        each_s = self.seconds / self.positions if self.positions else 0.0
        expected_s = self.alone_s + each_s * (decoding - self.alone)
        return max(expected_s, self.alone_s * decoding / self.alone) if decoding < self.alone else expected_s

    def after(self, step: _Step) -> _Learned:
        """With one step more, behind all others."""
        if not step.prompts:
            known = step.decoding == self.alone or self.alone
            before_s = self.without_prompts(step.decoding) if known else step.seconds
            return self._replace(alone=step.decoding, alone_s=0.75 * before_s + 0.25 * step.seconds, mixed=0)
        base, base_s = (self.alone, self.alone_s) if step.decoding else (0, 0.0)
        mixed, beyond = self.mixed + (step.decoding > 0), step.decoding + step.prompts - base
        if beyond <= 0:
            return self._replace(mixed=mixed)
        seconds = 0.875 * self.seconds + max(0.0, step.seconds - base_s)
        return self._replace(positions=0.875 * self.positions + beyond, seconds=seconds, mixed=mixed)


class Account:
    """Every step of an engine, and how many prompt tokens one more may compute: what `StepTimes` is stated to say, made
    anew from all steps each time."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._in_flight: deque[_Step] = deque()
        self._resolved_at = 0.0

    def launched(self, decoding: int, prompts: int, now: float) -> None:
        self._in_flight.append(_Step(now, decoding, prompts))

    def resolved(self, now: float) -> None:
        step = self._in_flight.popleft()
        self._steps.append(step._replace(seconds=now - max(step.launched_at, self._resolved_at)))
        self._resolved_at = now

    def lost(self) -> None:
        self._in_flight.clear()

    def forget(self) -> None:
        self._steps.clear()

    def most(self, decoding: int, waiting: int, max_step_s: float, chunk: int, page_size: int) -> set[int]:
        """Prompt tokens beside so many requests that decode: the number, or both that rounding leaves."""
        learned = _Learned()
        for step in self._steps:
            learned = learned.after(step)
        if learned.mixed >= MEASURED_EVERY and all(step.prompts for step in self._in_flight):
            return {0}
        alone_s = learned.without_prompts(decoding)
        room_s = max(max_step_s - alone_s, alone_s * min(3.0, 0.75 + 0.25 * waiting))
        fit = room_s * learned.positions / learned.seconds if learned.seconds > 0 else inf
        return {max(page_size, int(min(chunk, fit * rounded))) for rounded in (1 - ROUNDING, 1, 1 + ROUNDING)}


class WatchedTimes(StepTimes, dict=True):
    """What an engine keeps of its steps, which must say of the next one what an account of them says."""

    def watch(self, report: Callable[[str, str, int | None], None]) -> None:
        """From here on; no step was launched yet. `report` is told what differs."""
        self.account, self.report = Account(), report

    def launched(self, decoding: int, prompts: int, now: float) -> None:
        super().launched(decoding, prompts, now)
        self.account.launched(decoding, prompts, now)

    def resolved(self, now: float) -> None:
        super().resolved(now)
        self.account.resolved(now)

    def lost(self) -> None:
        super().lost()
        self.account.lost()

    def forget(self) -> None:
        super().forget()
        self.account.forget()

    def prompt_tokens(self, decoding: int, waiting: int, max_step_s: float | None, *sizes: Any) -> int:
        found = super().prompt_tokens(decoding, waiting, max_step_s, *sizes)
        if max_step_s is not None and decoding:
            most = self.account.most(decoding, waiting, max_step_s, *sizes)
            if found not in most:
                text = f"beside {decoding} requests that decode, {waiting} waiting, a step is to compute {found} prompt"
                self.report(BoundedGaps.name, f"{text} tokens, and by what steps have taken it is {min(most)}", None)
        return found


def watch_times(loop: Loop, report: Callable[[str, str, int | None], None]) -> None:
    """From here on what this loop, which has launched nothing, takes its steps to cost is judged."""
    times = WatchedTimes()
    times.watch(report)
    loop.limits.times = times
