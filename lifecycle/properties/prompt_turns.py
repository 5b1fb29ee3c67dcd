"""Property `prompts_take_turns`: whose prompt a step computes first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import DEPARTURES, History
from pawl.lifecycle.properties.ranks import Ranks
from pawl.lifecycle.records import Contained, Started, StepCommitted, StepPlanned, StepRolledBack, Transition
from pawl.lifecycle.requests import NOT_ADMITTED
from pawl.lifecycle.states import Event, State

MOST_BEHIND = 2


class _Prompt(NamedTuple):
    """A prompt of which steps have computed, or compute, a part."""

    request: int
    end: int
    """Positions that are computed or in flight."""
    num_tokens: int
    urgency: int
    """Its priority, where admission is by that."""

    @property
    def left(self) -> tuple[int, int]:
        """Less goes first."""
        return -self.urgency, self.num_tokens - self.end


class PromptsTakeTurns(Property):
    """Of the prompts that have begun, a step computes the one with least left first, and before it those of newcomers
    that have still less; where admission is by priority, a higher one comes before a lower one. But when the one that
    was admitted first has been behind another in two steps with prompts running, they go by age, and newcomers come
    last: a third of those steps are its own. Whoever is behind a prompt that does not end in a step has less than a
    page of it; but where pages may be short, older ones may go on beside one that does not."""

    name: ClassVar[str] = "prompts_take_turns"

    def __init__(self) -> None:
        self._ranks = Ranks()
        self._by_priority = False
        self._begun: dict[int, _Prompt] = {}
        """By row, without those whose last known token is computed or in flight."""
        self._newcomers: dict[int, _Prompt] = {}
        """Those that are admitted by the step that is being planned."""
        self._behind = 0
        """Steps with prompts running in which the prompt that began first was behind another."""
        self._one_pool = False
        self._free = 0
        """Pages that were free when a step was committed last."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        found = super().begin(beginning, history)
        self._ranks.begin(beginning)
        self._behind = beginning.behind
        for row in beginning.working:
            if beginning.table.state[row] == State.PREFILLING:
                self._begun[row] = self._prompt(row, beginning.num_computed(row), history)
        return found

    @on(Started)
    def _started(self, record: Started, history: History) -> Sequence[Violation]:
        loop: Any = record.config.get("loop")
        settings: dict[str, Any] = loop if isinstance(loop, dict) else {}
        self._by_priority, self._one_pool = settings.get("policy") == "priority", settings.get("window") is None
        return ()

    @on(Event.ADMIT)
    def _admitted(self, record: Transition, history: History) -> Sequence[Violation]:
        self._ranks.admitted(record.request)
        self._newcomers[record.row] = self._prompt(record.row, record.num_cached or 0, history)
        return ()

    @on(*DEPARTURES)
    def _left(self, record: Transition, history: History) -> Sequence[Violation]:
        if record.event in (Event.FINISH, Event.ABORT):
            self._ranks.left(record.request)
        self._begun.pop(record.row, None)
        self._newcomers.pop(record.row, None)
        return ()

    @on(StepRolledBack)
    def _rolled_back(self, record: StepRolledBack, history: History) -> Sequence[Violation]:
        self._ranks.rolled_back(history)
        for admission in history.restored:
            self._begun.pop(admission.row, None)
        return ()

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        self._ranks.committed(history)
        self._free = record.pages.free
        return ()

    @on(Contained)
    def _survived(self, record: Contained, history: History) -> Sequence[Violation]:
        self._behind = 0
        return ()

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        step = history.step
        if 0 not in step.chained.tobytes():
            return ()
        of_prompts = ~step.chained
        rows = step.rows[of_prompts].tolist()
        computed = dict(zip(rows, (step.ends - step.starts)[of_prompts].tolist(), strict=True))
        by_age = self._behind >= MOST_BEHIND
        order = sorted(self._begun, key=self._rank)
        self._behind = self._behind + 1 if order and rows[0] != order[0] else 0
        if not by_age:
            order.sort(key=lambda row: self._begun[row].left)
        found = tuple(self._judged(order, by_age, computed, history))
        self._begun |= self._newcomers
        self._newcomers.clear()
        for row, prompt in [(row, self._begun[row]) for row in rows if row in self._begun]:
            self._begun[row] = prompt._replace(end=prompt.end + computed[row])
            if prompt.left[1] <= computed[row]:
                del self._begun[row]
        return found

    def _judged(
        self, order: list[int], by_age: bool, computed: dict[int, int], history: History
    ) -> Iterator[Violation]:
        """`computed`: positions that the step computes of each prompt."""
        if self._behind > MOST_BEHIND:
            text = f"it is behind another prompt in {self._behind} steps running"
            yield self.violation(history, text, self._begun[order[0]].request)
        first = next((row for row in order if computed.get(row, 0) < self._begun[row].left[1]), None)
        if first is None:
            return
        prompt = self._begun[first]
        behind = order[order.index(first) + 1 :]
        if first not in computed and not self._plenty(history):
            behind = [row for row in behind if self._rank(row) > self._rank(first)]
        behind += [row for row, newcomer in self._newcomers.items() if by_age or newcomer.left >= prompt.left]
        tokens = sum(computed.get(row, 0) for row in behind)
        if tokens >= history.pages.page_size:
            text = f"step {history.step.step} leaves some of it, and computes {tokens} tokens of those that come later"
            yield self.violation(history, text, prompt.request)

    def _plenty(self, history: History) -> bool:
        """Whether pages are enough for all that the live requests may ever need, whoever has some already."""
        rows = list(history.open.values())
        most = history.num_prompt[rows] + history.num_wanted[rows]
        return self._one_pool and int((-(-most // history.pages.page_size)).sum()) <= self._free

    def _rank(self, row: int) -> int:
        return self._ranks.of.get(self._begun[row].request, NOT_ADMITTED)

    def _prompt(self, row: int, num_computed: int, history: History) -> _Prompt:
        submitted = history.submissions.get(row)
        urgency = submitted.priority if self._by_priority and submitted is not None else 0
        return _Prompt(int(history.request[row]), num_computed, history.known(row), urgency)
