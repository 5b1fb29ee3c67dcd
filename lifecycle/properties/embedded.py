"""Property `embedded_once`: what requests that want a vector get, from the records alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from pawl.lifecycle.columns import digests_of
from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.recompute import is_reproducible
from pawl.lifecycle.records import Started, StepCommitted, Submitted, Transition, int32s
from pawl.lifecycle.states import Cause, Event


class EmbeddedOnce(Property):
    """A request that wants a vector gets exactly one, with the step that computes the end of its prompt, nothing of
    which comes from the cache, and no token; it finishes by that and by nothing else. Nobody else gets a vector. Where
    the backend promises that vectors depend on nothing but the request, equal prompts have the same."""

    name: ClassVar[str] = "embedded_once"

    def __init__(self) -> None:
        self._comparing = False
        self._wanting: dict[int, int] = {}
        """Live requests that want a vector, by row."""
        self._given: set[int] = set()
        """Those of them that have got it."""
        self._seen: dict[tuple[str, bytes], tuple[bytes, int]] = {}
        """(namespace, prompt) -> the digest of its vector, and who got that first."""

    @on(Started)
    def _began(self, record: Started, history: History) -> Sequence[Violation]:
        self._comparing = is_reproducible(record)
        return ()

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        self._wanting.pop(record.row, None)
        if record.sampling.embed:
            self._wanting[record.row] = record.request
        return ()

    @on(Event.ADMIT)
    def _admitted(self, record: Transition, history: History) -> Sequence[Violation]:
        if not record.num_cached or record.row not in self._wanting:
            return ()
        text = f"it wants a vector, and {record.num_cached} positions of its prompt come from the cache"
        return (self.violation(history, text, record.request),)

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        if record.embedded is None and not self._wanting:
            return ()
        return tuple(self._given_by(record, history))

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        return tuple(self._end_of(record, history))

    def _given_by(self, record: StepCommitted, history: History) -> Iterator[Violation]:
        step, committed = history.step, history.committed
        for row in step.rows[committed.drew].tolist():
            if row in self._wanting:
                yield self.violation(history, "a token for a request that wants a vector", self._wanting[row])
        if record.embedded is None:
            return
        computed = committed.live & (step.ends == history.num_prompt[step.rows])
        ready = set(step.rows[computed].tolist())
        for row, digest in zip(int32s(record.embedded.rows).tolist(), digests_of(record.embedded), strict=True):
            request = self._wanting.get(row)
            if request is None:
                yield self.violation(history, f"a vector for row {row}, where nobody wants one")
                continue
            if request in self._given:
                yield self.violation(history, "a second vector", request)
            if row not in ready:
                yield self.violation(history, "a vector of a prompt whose end this step does not compute", request)
            self._given.add(request)
            yield from self._compare(row, request, digest, history)

    def _compare(self, row: int, request: int, digest: bytes, history: History) -> Iterator[Violation]:
        if not self._comparing:
            return
        submitted = history.submissions[row]
        key = submitted.namespace, int32s(submitted.tokens).tobytes()
        first, other = self._seen.setdefault(key, (digest, request))
        if first != digest:
            yield self.violation(history, f"its vector is not that of request {other}, its equal", request)

    def _end_of(self, record: Transition, history: History) -> Iterator[Violation]:
        wants = self._wanting.get(record.row) == record.request
        given = record.request in self._given
        if wants:
            del self._wanting[record.row]
            self._given.discard(record.request)
        if record.event != Event.FINISH:
            return
        if (record.cause == Cause.EMBEDDED) != wants:
            what = "a vector" if wants else "no vector"
            yield self.violation(history, f"it wants {what}, and finished by {record.cause}", record.request)
        elif wants and not given:
            yield self.violation(history, "it finished, and its vector is not recorded", record.request)
