"""The one list of actors: who is in it, in which order they stop, and that names are all that ties them together."""

from __future__ import annotations

import msgspec
import pytest

from pawl.actors.gateway import Gateway
from pawl.actors.messages.generate import Submit
from pawl.actors.names import DECODE, NAMES, PREFILL, UNIFIED, Names, names_of
from pawl.actors.recorder import Recorder
from pawl.actors.simulation.strategies.simple import Fair
from pawl.actors.simulation.system import SimulatedSystem
from pawl.actors.sink import Inbox
from pawl.actors.storage import Storage
from pawl.actors.tiers.store import TierStore
from pawl.build.ghost import GhostSource
from pawl.build.parts import Parts
from pawl.build.wiring import ActorSpec, engine_actors, process_of, spawn_all, stop_order
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.runner import Ghost
from pawl.loops.select import LoopConfig
from pawl.memory.tiers.host import HostPool
from pawl.testing.expectations import vocabulary
from pawl.testing.parameters import parameters_of
from pawl.testing.replica import MemoryTrace
from pawl.testing.workload import Arrival
from tests.loops.driver import first_record

PROMPT = (97, 98, 97)


def actors(names: Names = NAMES, *, whole: bool = False) -> tuple[Gateway, tuple[ActorSpec, ...]]:
    """An engine with a ghost; `whole`: with storage and recorder as well."""
    config = LoopConfig(num_pages=8, page_size=4, max_context=32, max_running=2)
    recorder: object = MemoryTrace()
    parts = Parts(
        source=GhostSource(),
        vocabulary=vocabulary(),
        runner=Ghost.for_shape(config),
        loop_config=config,
        recorder=Recorder(recorder, first_record(config)) if whole else None,  # type: ignore[arg-type]
        storage=Storage(TierStore(HostPool(2, 64), None, eager=True), names) if whole else None,
    )
    gateway = Gateway(traced=whole, short=8, names=names)
    return gateway, engine_actors(parts, gateway, 60.0, names=names)


def test_actors_stop_upstream_first_and_the_trace_last() -> None:
    _, specs = actors(whole=True)
    assert stop_order(specs) == (
        *("tokenizer", "long_tokenizer", "scheduler", "groups", "stager", "worker", "storage"),
        *("detokenizer", "watchdog", "gateway", "recorder"),
    )


def test_storage_and_recorder_are_there_where_the_parts_have_them() -> None:
    _, specs = actors()
    assert not {NAMES.storage, NAMES.recorder} & set(stop_order(specs))


def test_two_engines_live_in_one_system_under_their_own_names() -> None:
    system = SimulatedSystem(Fair())
    called = [name for name in Names.__struct_fields__ if name != "replica"]
    replicas = [msgspec.structs.replace(NAMES, **{name: f"{name} {number}" for name in called}) for number in (1, 2)]
    inboxes, order = [], []
    for names in replicas:
        gateway, specs = actors(names, whole=True)
        spawn_all(system, specs)
        order += stop_order(specs)
        inboxes.append(Inbox(whole=True))
        sampling = parameters_of(Arrival(prompt=PROMPT, max_new_tokens=4))
        gateway.submit([Submit(request=0, rid="", token_ids=PROMPT, sampling=sampling)], [inboxes[-1]])
    system.start()
    assert system.run(lambda: all(inbox.final for inbox in inboxes), timeout_s=1.0)
    answers = [delta.tokens for inbox in inboxes if (delta := inbox.take()) is not None]
    assert answers == [tuple(expected(list(PROMPT), 4))] * 2
    assert system.stop(order) == ()
    assert system.dead_letters.recent() == ()


@pytest.mark.parametrize("lost", ["tokenizer", "long_tokenizer", "scheduler", "worker", "detokenizer"])
def test_the_gateway_watches_everybody_without_whom_nothing_is_answered(lost: str) -> None:
    system = SimulatedSystem(Fair())
    gateway, specs = actors()
    spawn_all(system, specs)
    system.start()
    system.run(lambda: False, timeout_s=0.0)
    system.find(lost).abandon("lost")  # type: ignore[union-attr]
    system.run(lambda: gateway.lost is not None, timeout_s=1.0)
    assert gateway.lost is not None
    assert gateway.lost.startswith(f"{lost} is gone")


def test_all_actors_of_a_replica_live_in_its_process() -> None:
    for role in (UNIFIED, PREFILL, DECODE):
        names = names_of(2, role)
        assert {process_of(name) for name in names.own} == {"replica-2"}
