"""The gateway's books: one entry for each open request, under its number and under its client's name for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
import structlog

from pawl.actors.measures import FIRST_TOKEN_BUCKETS_S, DurationsByOperation, Histogram, Operation, Rate
from pawl.actors.messages.generate import Accepted, Done, Output, Refused
from pawl.actors.sink import Sink
from pawl.actors.text.invalid import quoted
from pawl.actors.unread import MOST_UNREAD
from pawl.lifecycle.numbers import numbers_from
from pawl.lifecycle.states import Cause
from pawl.loops.recovery import FAILED

log = structlog.get_logger(__name__)

HTTP_OVERLOADED = 503
HTTP_DUPLICATE = 400
HTTP_INTERNAL = 500


class Entry(msgspec.Struct, eq=False):
    """One open request."""

    request: int
    names: tuple[str, ...]
    """What the client calls it: its own name, and that of its group where it has one."""
    sink: Sink | None
    """None once the client is gone."""
    opened: float
    operation: Operation
    num_unread: int = 0
    """Characters of a long prompt that the tokenizer has not read yet (see `unread`)."""
    first_output: float | None = None
    num_tokens: int = 0
    recorder: str = ""
    """Who writes the trace of the replica that has it; empty: none was given it, or there is only one."""
    aborting: bool = False
    received: bool = False
    """It is counted as submitted."""
    failed: bool = False
    """Its client was told of a failure of the server."""
    measured: bool = False
    answered: bool = False
    counted: bool = False
    """How far its closing is: one that failed half-way is gone on with."""
    watchers: list[Callable[[], None]] = msgspec.field(default_factory=list)
    """Called once, when the request has ended."""

    def notify(self) -> None:
        for call in self.watchers:
            call()


class Totals(msgspec.Struct):
    """What the gateway has seen since it started."""

    submitted: int = 0
    ended: Counter[Cause] = msgspec.field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    late_outputs: int = 0
    """Outputs for requests that the gateway itself had to end, after a peer was lost."""
    violations: Counter[str] = msgspec.field(default_factory=Counter)


class OpenRequests:
    """Entries by number and by name. Several requests of one call may share a name."""

    def __init__(self, answered: Callable[[Entry, Cause, float], None] = lambda entry, cause, now: None) -> None:
        """`answered(entry, cause, now)` hears of each entry that leaves the books, before its client does."""
        self.totals = Totals()
        self.orphaned = False
        """A peer is lost and all entries were ended: what still arrives for them is late, and breaks no rule."""
        self.durations = DurationsByOperation()
        self.queue_time = Histogram(FIRST_TOKEN_BUCKETS_S)
        """From the scheduler's taking a request to its admission."""
        self.throughput = Rate()
        """Output tokens that reached clients."""
        self._entries: dict[int, Entry] = {}
        self._named: dict[str, list[int]] = {}
        self._next = 1
        self._answered = answered
        self._closing: Entry | None = None
        """The latest entry that left the books, whose client may still have to be told."""

    def __len__(self) -> int:
        return len(self._entries)

    def numbers(self, count: int, long: bool = False) -> Sequence[int]:
        """The next `count` request numbers of this kind; none is ever given twice."""
        numbers = numbers_from(self._next, count, long)
        self._next = max(numbers, default=self._next - 1) + 1
        return numbers

    def why_not(self, count: int, names: Iterable[str], limit: int, num_unread: int = 0) -> Refused | None:
        """Why `count` requests of these names, with so many characters of long prompts, cannot be opened beside those
        that are, if so."""
        waiting = self.num_unread if num_unread else 0
        if waiting and waiting + num_unread > MOST_UNREAD:
            text = f"long prompts of {waiting} characters wait to be read; try again later"
            return Refused(0, Cause.OVERLOADED, text, HTTP_OVERLOADED)
        if len(self) + count > limit:
            text = f"{len(self)} requests are open and {limit} are allowed; try again later"
            return Refused(0, Cause.OVERLOADED, text, HTTP_OVERLOADED)
        for name in names:
            if name in self._named:
                text = f"Duplicate request ID: {quoted(name)} is still running; choose another rid or leave it out"
                return Refused(0, Cause.INVALID, text, HTTP_DUPLICATE, "rid")
        return None

    def count_refused(self, cause: Cause) -> None:
        """A request was refused before it had an entry."""
        totals = self.totals
        totals.submitted, totals.ended[cause] = totals.submitted + 1, totals.ended[cause] + 1

    @property
    def num_unread(self) -> int:
        """Characters of long prompts that wait for the tokenizer."""
        return sum(entry.num_unread for entry in self._entries.values())

    def open(
        self,
        request: int,
        names: tuple[str, ...],
        sink: Sink,
        now: float,
        num_unread: int = 0,
        operation: Operation = Operation.TEXT_COMPLETION,
    ) -> None:
        entry = self._entries[request] = Entry(request, names, sink, now, operation, num_unread)
        for name in names:
            self._named.setdefault(name, []).append(request)
        self.totals.submitted += 1
        entry.received = True

    def withdraw(self, request: int, names: tuple[str, ...]) -> None:
        """Take back an `open`, of which perhaps only a part was done: nobody has heard of the request."""
        entry = self._entries.pop(request, None)
        if entry is not None and entry.received:
            self.totals.submitted -= 1
        self._forget(request, names)

    def get(self, request: int) -> Entry | None:
        return self._entries.get(request)

    def named(self, name: str) -> tuple[int, ...]:
        """The open requests of exactly this name."""
        return tuple(self._named.get(name, ()))

    def all(self) -> tuple[int, ...]:
        """Oldest first."""
        return tuple(self._entries)

    def among(self, requests: Iterable[int]) -> Sequence[Entry]:
        """Those of `requests` that are open."""
        return [self._entries[request] for request in requests if request in self._entries]

    # ---- replies ----

    def placed(self, request: int, recorder: str) -> None:
        """The replica of this recorder has it from now on; one that was answered meanwhile stays where it was."""
        entry = self._entries.get(request)
        if entry is not None:
            entry.recorder = recorder

    def are_of(self, recorder: str) -> bool:
        """Whether the replica of this recorder had any of those that are open last."""
        return any(entry.recorder == recorder for entry in self._entries.values())

    def accept(self, accepted: Accepted) -> None:
        entry = self._find(accepted.request, "accepted")
        if entry is None:
            return
        entry.num_unread = 0
        if entry.sink is not None:
            entry.sink.accepted(accepted)

    def output(self, output: Output, now: float) -> None:
        entry = self._find(output.request, "output")
        if entry is None:
            return
        if output.tokens:
            if entry.first_output is None:
                entry.first_output = now
            entry.num_tokens += len(output.tokens)
        if output.done is None:
            if entry.sink is not None:
                entry.sink.push(output)
            return
        self._close(entry, output.done.cause, output.done, now)
        if entry.sink is not None:
            entry.sink.push(output)
            entry.sink = None
        entry.notify()
        self._closing = None

    def refuse(self, refused: Refused, now: float) -> None:
        entry = self._find(refused.request, "refused")
        if entry is None:
            return
        self._close(entry, refused.cause, None, now)
        if entry.sink is not None:
            entry.sink.refused(refused)
            entry.sink = None
        entry.notify()
        self._closing = None

    def give_up(self, request: int, now: float) -> None:
        """Take a request off the books that nobody will end any more, if it is not off them already. Its client has
        been told, or is gone."""
        entry = self._entries.get(request) or self._closing
        if entry is not None and entry.request == request:
            self._close(entry, Cause.INTERNAL, None, now)
            entry.notify()
            self._closing = None

    def tell_failure(self, request: int) -> None:
        """Handling something for this request failed, perhaps in the middle of its end: its client is told now, unless
        it is gone."""
        entry = self._entries.get(request) or self._closing
        if entry is None or entry.request != request:
            return
        entry.failed = True
        if entry.sink is not None:
            sink, entry.sink = entry.sink, None
            sink.refused(Refused(request, Cause.INTERNAL, FAILED, HTTP_INTERNAL))

    def _find(self, request: int, kind: str) -> Entry | None:
        """The entry that a message is for. There should be one: a message of this `kind` for a request that has ended,
        or never was, breaks a rule and is counted."""
        entry = self._entries.get(request)
        if entry is None and self.orphaned:
            self.totals.late_outputs += 1
        elif entry is None:
            after_end = "silence_after_abort" if kind == "output" else "legal_lifecycle"
            name = after_end if 0 < request < self._next else "incarnation"
            self.totals.violations[name] += 1
            log.error("a rule of the request's life was broken", property=name, message=kind, request=request)
        return entry

    def _close(self, entry: Entry, cause: Cause, done: Done | None, now: float) -> None:
        """Take the entry off the books, and count it. No `done`: the request never reached the scheduler."""
        self._closing = entry
        if entry.failed:  # its client was told so, whatever the scheduler says
            cause = Cause.INTERNAL
        if not entry.measured:
            entry.measured = True
            self._measure(entry, done, now)
        self._forget(entry.request, entry.names)
        if not entry.answered:
            self._answered(entry, cause, now)
            entry.answered = True
        self._entries.pop(entry.request, None)
        if not entry.counted:
            self.totals.ended[cause] += 1
            entry.counted = True

    def _forget(self, request: int, names: tuple[str, ...]) -> None:
        for name in names:
            others = [other for other in self._named.get(name, ()) if other != request]
            if others:
                self._named[name] = others
            else:
                self._named.pop(name, None)

    def _measure(self, entry: Entry, done: Done | None, now: float) -> None:
        self.durations[entry.operation].observe(entry.opened, entry.first_output, entry.num_tokens, now)
        if done is not None:
            self.totals.prompt_tokens += done.usage.prompt_tokens
            self.totals.cached_tokens += done.usage.cached_tokens
            self.totals.generated_tokens += done.usage.completion_tokens
            if done.timing.admitted is not None:
                self.queue_time.observe(done.timing.admitted - done.timing.submitted)

    def check(self) -> None:
        """Raise AssertionError when the books do not balance: received = ended + open, and each open request has one
        place under each of its names."""
        received, ended = self.totals.submitted, self.totals.ended.total()
        if received != ended + len(self._entries):
            raise AssertionError(f"{received} received, {ended} ended, {len(self._entries)} open")
        named = sorted((request, name) for name, group in self._named.items() for request in group)
        if named != sorted((entry.request, name) for entry in self._entries.values() for name in entry.names):
            raise AssertionError(f"named {named}, open {sorted(self._entries)}")
