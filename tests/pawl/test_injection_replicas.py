"""An exception at any line where there are several replicas."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.actors.control.serving import PauseGeneration
from pawl.actors.control.sessions import OpenSessionByName
from pawl.actors.prefill_desk import PrefillDesk
from pawl.actors.router import Router
from pawl.testing.injection import places_of
from pawl.testing.shape import Shape
from pawl.testing.workload import Arrival, Control, Workload
from tests.mutants.mutant import Edit, planted
from tests.pawl.test_injection import broken, sampled, without

REPLICAS = (
    *("actors/router.py", "actors/routed.py", "actors/placement.py", "actors/replica_asks.py", "actors/gathering.py"),
    *("actors/prefill_desk.py", "actors/asks.py", "actors/known_replicas.py", "actors/answer_traces.py"),
    *("actors/gateway.py", "loops/remote_prefill.py", "actors/tiers/hand_over"),
)
FEW = 12
"""Places of each workload that are tried in every run of the tests."""


def beside_each_other(**shape: Any) -> Workload:
    """Some share a prefix, some leave, one stops at a string, two are turns, and generation is paused once."""
    arrivals = (
        Arrival(prompt=(1, 2, 3, 4, 5), max_new_tokens=4),
        Arrival(prompt=(1, 2, 3, 4, 6, 7), max_new_tokens=5, stop_after=3),
        Arrival(prompt=(9, 8, 7, 6), max_new_tokens=6, top_logprobs=2, leaves_after=2),
        Arrival(prompt=(4, 4), max_new_tokens=3, session=True),
        Arrival(prompt=(5,), max_new_tokens=2, session=True, turn_of=3),
        Arrival(prompt=(1, 2, 3, 4, 5), max_new_tokens=3, after_tokens=8),
    )
    opens = Control(body=OpenSessionByName(capacity=60, session_id="session", streaming=False))
    pause = Control(body=PauseGeneration("retract"), after_tokens=5)
    return Workload(arrivals=arrivals, controls=(opens, pause), shape=Shape(prefill_chunk=4, num_pages=12, **shape))


ASKED = {"replicas": {"replicas": 2}, "apart": {"prefillers": 1, "host_pages": 12}}


@pytest.mark.parametrize("shape", ASKED.values(), ids=list(ASKED))
def test_an_exception_at_any_of_a_sample_of_lines_of_several_replicas_ends_at_most_one_request(
    shape: dict[str, Any],
) -> None:
    asked = beside_each_other(**shape)
    places = [place for place in places_of(asked) if place.file.startswith(REPLICAS)]
    assert len({place.file for place in places}) >= 6
    assert broken(sampled(places, FEW), 2, asked) == []


CONTAINED = {
    "nothing is done again": (
        Edit(Router.spares, "self.receive(message)", "pass"),
        "replicas",
        "Router._pass_on",
    ),
    "a request is placed before it is sent": (
        Edit(Router.spares, "self.contain(message.request, error)", "self.told_of(error)"),
        "replicas",
        "Router._place",
    ),
    "loads are not counted again": (
        Edit(Router.spares, "count(self.replicas, self.routed)", "pass"),
        "replicas",
        "Router._place",
    ),
    "pages are sent of what is refused": (
        Edit(PrefillDesk.spares, "self.context.send(self._names.storage, over, Lane.CONTROL)", "pass"),
        "apart",
        "PrefillDesk._begin",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("edit", "kind", "function"), CONTAINED.values(), ids=list(CONTAINED))
def test_replicas_without_their_containment_are_found_out(edit: Edit, kind: str, function: str) -> None:
    asked = beside_each_other(**ASKED[kind])
    places = sampled([place for place in places_of(asked) if place.function == function], FEW)
    with planted(without(edit)):
        assert broken(places, 0, asked) != []
