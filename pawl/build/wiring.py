"""Who runs in an engine: one list, for a server, for the simulator, and for tests of a few actors.

    gateway ─► tokenizer ─► scheduler ─► worker            recorder ◄─ scheduler, gateway
       ▲                      │    ▲        │              watchdog ◄─ scheduler, ─► gateway
       └───── detokenizer ◄───┘    └────────┘              storage  ◄► scheduler, worker
                                                           grammar  ◄► scheduler
                                                           stager   ◄► scheduler
                                                           groups   ◄► scheduler

Who is spawned how, who is watched, and in which order actors stop follow from the list.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pawl.actors.detokenizer import Detokenizer
from pawl.actors.gateway import Gateway
from pawl.actors.grammar import GrammarCompiler
from pawl.actors.names import NAMES, Names
from pawl.actors.runtime.actor import Actor, Overflow
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.scheduler import Scheduler
from pawl.actors.stager import Stager
from pawl.actors.tokenizer import Tokenizer
from pawl.actors.watchdog import Watchdog
from pawl.actors.weight_groups import WeightGroups
from pawl.actors.worker import Worker
from pawl.build.parts import Parts
from pawl.gpu.trainers.received import Received


class ActorSpec(NamedTuple):
    """One actor and its mailbox."""

    name: str
    actor: Actor
    capacity: int = 1024
    """DATA messages that may wait."""
    overflow: Overflow = Overflow.REJECT


def engine_actors(
    parts: Parts,
    gateway: Gateway,
    request_timeout_s: float,
    *,
    names: Names = NAMES,
    make_scheduler: Callable[..., Scheduler] = Scheduler,
    turned_at: Callable[[], float | None] | None = None,
) -> tuple[ActorSpec, ...]:
    """The actors of an engine made of `parts`, in the order in which they stop: upstream first, so that everything
    under way is answered before its answerer goes; the trace ends last.

    The gateway and a storage are made elsewhere, with the same `names`. Past the tokenizer a full mailbox holds its
    sender back: what was accepted is never thrown away half-way. `turned_at`: when the gateway's event loop was last
    seen to turn, for the watchdog; None where it shares none.
    """
    config, hold = parts.loop_config, Overflow.HOLD
    # A scheduler that is held back may still end every request, each by a message of its own.
    told = max(4096, 2 * config.max_running + config.max_queued)
    started = parts.started if parts.recorder is not None else None
    storage, recorder = parts.storage, parts.recorder
    received = Received()
    return (
        ActorSpec(names.tokenizer, Tokenizer(parts.vocabulary, config.max_context, names)),
        ActorSpec(
            names.scheduler,
            make_scheduler(config, request_timeout_s, started, names),
            capacity=max(1024, config.max_queued),
        ),
        *(
            [ActorSpec(names.grammar, GrammarCompiler(parts.grammars, names), overflow=hold, capacity=told)]
            if parts.grammars
            else []
        ),
        ActorSpec(names.groups, WeightGroups(parts.runner, received, parts.trainers, names)),
        ActorSpec(names.stager, Stager(parts.runner, received, names)),
        ActorSpec(names.worker, Worker(parts.runner, names, parts.profiler), overflow=hold),
        *([ActorSpec(names.storage, storage)] if storage is not None else []),
        ActorSpec(names.detokenizer, Detokenizer(parts.vocabulary, names), overflow=hold, capacity=told),
        ActorSpec(names.watchdog, Watchdog(names=names, turned_at=turned_at)),
        ActorSpec(names.gateway, gateway, overflow=hold),
        *([ActorSpec(names.recorder, recorder, capacity=65_536)] if recorder is not None else []),
    )


def spawn_all(
    system: LocalSystem,
    specs: Sequence[ActorSpec],
    *,
    watcher: str = NAMES.gateway,
    loop: asyncio.AbstractEventLoop | None = None,
) -> None:
    """Spawn the actors; `watcher` learns of each other one that is lost, and runs on `loop`, where one is given."""
    for spec in specs:
        on = loop if spec.name == watcher else None
        system.spawn(spec.actor, spec.name, capacity=spec.capacity, overflow=spec.overflow, loop=on)
    for spec in specs:
        if spec.name != watcher:
            system.watch(watcher, spec.name)


def stop_order(specs: Sequence[ActorSpec]) -> tuple[str, ...]:
    """Names, for `System.stop`."""
    return tuple(spec.name for spec in specs)
