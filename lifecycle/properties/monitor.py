"""Feeds records to the properties: the same for a simulated run, a recorded one and a live server."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MethodType
from typing import Any

from pawl.lifecycle.properties.adapters import AdapterReferences
from pawl.lifecycle.properties.admission_order import AdmissionOrder
from pawl.lifecycle.properties.base import Judge, Property, Violation
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.bounded_gaps import BoundedGaps
from pawl.lifecycle.properties.causes import TrueCauses
from pawl.lifecycle.properties.conservation import Conservation, NoReuseBeforeFence
from pawl.lifecycle.properties.dispatch import KINDS, Kind
from pawl.lifecycle.properties.embedded import EmbeddedOnce
from pawl.lifecycle.properties.ending import AbortIsTotal, Incarnation, SilenceAfterAbort, StreamEqualsResult
from pawl.lifecycle.properties.giving_way import AdmissionIsMonotone
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.legal_lifecycle import LegalLifecycle
from pawl.lifecycle.properties.limits import LimitsHold
from pawl.lifecycle.properties.logprobs import LogprobsAsAsked
from pawl.lifecycle.properties.observability_conservation import ObservabilityConservation
from pawl.lifecycle.properties.outputs import (
    BatchIndependence,
    CacheHitEquivalence,
    RetractionTransparency,
    ScheduleEquivalence,
    StopSemantics,
)
from pawl.lifecycle.properties.pausing import PausedIsStill
from pawl.lifecycle.properties.progress import BoundedProgress, FaultIsolation
from pawl.lifecycle.properties.prompt_turns import PromptsTakeTurns
from pawl.lifecycle.properties.residency import ReleasedIsStill
from pawl.lifecycle.properties.sessions import SessionAtomicity
from pawl.lifecycle.properties.sharing import (
    HoldAccounting,
    NamespaceIsolation,
    QuiescentFlush,
    ReadAfterCommit,
    SingleOwner,
    WeightEpochs,
)
from pawl.lifecycle.properties.speculation import DraftsInBounds
from pawl.lifecycle.properties.start import StartAgrees
from pawl.lifecycle.properties.steps import Malformed
from pawl.lifecycle.properties.stream_positions import StreamPositions
from pawl.lifecycle.properties.time_order import TimeOrder
from pawl.lifecycle.properties.turns import FairMicroBatches
from pawl.lifecycle.properties.weight_groups import WeightGroups
from pawl.lifecycle.records import Record

PROPERTIES: tuple[type[Property], ...] = (
    Conservation,
    SingleOwner,
    NoReuseBeforeFence,
    HoldAccounting,
    ReadAfterCommit,
    NamespaceIsolation,
    LegalLifecycle,
    SilenceAfterAbort,
    AbortIsTotal,
    Incarnation,
    BoundedProgress,
    FaultIsolation,
    AdmissionIsMonotone,
    AdmissionOrder,
    TrueCauses,
    ScheduleEquivalence,
    RetractionTransparency,
    CacheHitEquivalence,
    BatchIndependence,
    StreamEqualsResult,
    StopSemantics,
    LogprobsAsAsked,
    EmbeddedOnce,
    QuiescentFlush,
    PausedIsStill,
    LimitsHold,
    BoundedGaps,
    PromptsTakeTurns,
    ReleasedIsStill,
    WeightEpochs,
    AdapterReferences,
    WeightGroups,
    SessionAtomicity,
    ObservabilityConservation,
    StreamPositions,
    TimeOrder,
    DraftsInBounds,
    FairMicroBatches,
    StartAgrees,
)
"""Every property that a trace alone can decide."""

MOST_WORDS = 300
"""Characters of an exception's own words: they may quote a whole record."""
WELL_FORMED = "well_formed"
"""Stands for a property in the violation that `Malformed` becomes."""


@lru_cache(maxsize=64)
def _table(properties: tuple[type[Property], ...]) -> Mapping[Kind, Sequence[tuple[int, Callable[..., Any]]]]:
    """Of each kind of records: the places of the properties that it concerns, each with its method."""
    found: dict[Kind, list[tuple[int, Callable[..., Any]]]] = {kind: [] for kind in KINDS}
    for place, each in enumerate(properties):
        for kind, method in each.judges().items():
            found[kind].append((place, method))
    return found


class Monitor:
    """Judges records as they come. After a record that contradicts the ones before it, judging ends."""

    def __init__(self, properties: Sequence[Property] | None = None) -> None:
        """`properties`: those to judge by, every one that a trace alone can decide where None. More may be appended
        before the first record."""
        self.properties = [make() for make in PROPERTIES] if properties is None else list(properties)
        self.history = History()
        self.violations: list[Violation] = []
        self.judging = True
        self.indigestible = False
        """Judging has ended at a record that no engine writes: a value that is out of all bounds, say."""
        self._judges: dict[Kind, list[Judge]] = {}
        """What is to see records of each kind that has come so far, in the order of the properties."""
        self._reported: dict[tuple[str, int | None], int] = {}
        """(property, request) -> the record of its first violation"""

    def observe(self, record: Record) -> Sequence[Violation]:
        """Judge one record: what it newly violates. Of each property and request, only the first record that shows a
        violation counts: what follows is mostly its echo."""
        if not self.judging:
            return ()
        try:
            self.history.advance(record)
        except Malformed as error:
            self.judging = False
            return self._report([Violation(WELL_FORMED, str(error), self.history.number, error.request)])
        except Exception as error:
            return self._refuse(record, error)
        judges = self._judges.get(self.history.kind)
        if judges is None:
            judges = self._judges[self.history.kind] = self._judges_of(self.history.kind)
        found: list[Violation] = []
        try:
            if self.history.beginning is not None and not self.history.number:
                found += self._begun(self.history.beginning)
            for judge in judges:
                violations = judge(record, self.history)
                if violations:
                    found.extend(violations)
        except Exception as error:
            return [*self._report(found), *self._refuse(record, error)]
        return self._report(found) if found else ()

    def finish(self, whole: bool = True) -> Sequence[Violation]:
        """The trace ends here; `whole`: it is complete."""
        whole = whole and self.judging
        ends = [each.finish if whole else each.broken_off for each in self.properties]
        try:
            return self._report([violation for end in ends for violation in end(self.history)])
        except Exception as error:
            return self._refuse(None, error)

    def _begun(self, beginning: Beginning) -> list[Violation]:
        return [violation for each in self.properties for violation in each.begin(beginning, self.history)]

    def _refuse(self, record: Record | None, error: Exception) -> Sequence[Violation]:
        """What is recorded may be anything, and no property was meant to survive all of it: judging ends here."""
        self.judging, self.indigestible = False, True
        what = "the whole of it" if record is None else f"this {type(record).__name__}"
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
        text = f"no engine records {what}: {type(error).__name__}: {error!s:.{MOST_WORDS}} ({where})"
        return self._report([Violation(WELL_FORMED, text, self.history.number)])

    def _judges_of(self, kind: Kind) -> list[Judge]:
        table = _table(tuple(map(type, self.properties)))
        return [MethodType(method, self.properties[place]) for place, method in table[kind]]

    def _report(self, found: list[Violation]) -> list[Violation]:
        new: list[Violation] = []
        for violation in found:
            key = violation.property, violation.request
            if self._reported.setdefault(key, violation.record) == violation.record:
                new.append(violation)
        self.violations += new
        return new
