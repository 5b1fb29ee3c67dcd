"""Who runs in an engine: one list, for a server, for the simulator, and for tests of a few actors.

    gateway ─► tokenizers ─► scheduler ─► worker           recorder ◄─ scheduler, gateway
       ▲                       │    ▲        │             watchdog ◄─ scheduler, ─► gateway
       └───── detokenizer ◄────┘    └────────┘             storage  ◄► scheduler, worker
                                                           grammar  ◄► scheduler
    A second tokenizer reads long prompts.                 stager   ◄► scheduler
                                                           groups   ◄► scheduler

Of several replicas each has a scheduler, a worker, and those on the right, for itself; the router stands between them
and the others (`pawl/actors/router.py`).

Who is spawned how, who is watched, where each lives, and in which order actors stop follow from the list.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from pawl.actors.detokenizer import Detokenizer
from pawl.actors.gateway import Gateway
from pawl.actors.grammar import GrammarCompiler
from pawl.actors.linker import Linker
from pawl.actors.names import DESK, FRONT, NAMES, PREFILL, ROUTER, Names
from pawl.actors.prefill_desk import PrefillDesk
from pawl.actors.router import Router
from pawl.actors.runtime.actor import Actor, Overflow
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.scheduler import Scheduler
from pawl.actors.stager import Stager
from pawl.actors.text.vocabulary import Vocabulary
from pawl.actors.tokenizer import Tokenizer
from pawl.actors.watchdog import Watchdog
from pawl.actors.weight_groups import WeightGroups
from pawl.actors.worker import Worker
from pawl.build.parts import Parts
from pawl.gpu.trainers.received import Received
from pawl.loops.select import LoopConfig

PROCESS_OF = {
    "tokenizer": "front",
    "long_tokenizer": "front",
    "scheduler": "replica",
    "grammar": "replica",
    "groups": "replica",
    "stager": "replica",
    "worker": "replica",
    "storage": "replica",
    "linker": "replica",
    "router": "front",
    "detokenizer": "front",
    "watchdog": "replica",
    "gateway": "front",
    "recorder": "replica",
}
"""In which process each actor lives, where there are several, in the order in which they stop."""


class ActorSpec(NamedTuple):
    """One actor and its mailbox."""

    name: str
    actor: Actor
    capacity: int = 1024
    """DATA messages that may wait."""
    overflow: Overflow = Overflow.REJECT
    watcher: str = ""
    """Who learns that it is lost; empty: the gateway."""


def engine_actors(
    replicas: Parts | Sequence[Parts],
    gateway: Gateway,
    request_timeout_s: float,
    *,
    names: Names = NAMES,
    router: Router | None = None,
    make_scheduler: Callable[..., Scheduler] = Scheduler,
    turned_at: Callable[[], float | None] | None = None,
) -> tuple[ActorSpec, ...]:
    """The actors of an engine with one replica, or behind `router` with several, in the order in which they stop.

    The gateway and a storage are made elsewhere, with the same `names`; behind a router with FRONT, and their own. Past
    the tokenizer a full mailbox holds its sender back: what was accepted is never thrown away half-way. `turned_at`:
    when the gateway's event loop was last seen to turn, for one watchdog; None where it shares none.
    """
    several = [replicas] if isinstance(replicas, Parts) else replicas
    make = partial(replica_actors, make_scheduler=make_scheduler)
    first, *others = several
    if router is None:
        front = front_actors(first.vocabulary, first.loop_config, gateway, names=names)
        return in_order((*front, *make(first, request_timeout_s, names=names, turned_at=turned_at)), names)
    made = [
        make(first, request_timeout_s, names=first.names, turned_at=turned_at),
        *(make(parts, request_timeout_s, names=parts.names) for parts in others),
    ]
    specs = (*routed_front(several, gateway, router), *(spec for each in made for spec in each))
    return in_order(specs, *(parts.names for parts in several))


class Served(Protocol):
    """What the front needs to know of a replica."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def loop_config(self) -> LoopConfig: ...


def routed_front(replicas: Sequence[Served], gateway: Gateway, router: Router) -> tuple[ActorSpec, ...]:
    """Those that live in the front process, before these replicas and as many more as the router may have."""
    first = replicas[0]
    front = front_actors(first.vocabulary, first.loop_config, gateway, names=FRONT)
    # Outputs of all replicas come through it, and nothing of them may be refused.
    room = max(len(replicas), router.fleet.size.rule.most) * _told(first.loop_config)
    return (*front, ActorSpec(ROUTER, router, overflow=Overflow.HOLD, capacity=room))


def front_actors(
    vocabulary: Vocabulary, config: LoopConfig, gateway: Gateway, *, names: Names = NAMES
) -> tuple[ActorSpec, ...]:
    """Those that live in the front process."""
    hold = Overflow.HOLD
    tokenizers = (names.tokenizer, names.long_tokenizer) if gateway.reads_apart else (names.tokenizer,)
    return (
        *(ActorSpec(name, Tokenizer(vocabulary, config.max_context, names)) for name in tokenizers),
        ActorSpec(names.detokenizer, Detokenizer(vocabulary, names), overflow=hold, capacity=_told(config)),
        ActorSpec(names.gateway, gateway, overflow=hold),
    )


def replica_actors(
    parts: Parts,
    request_timeout_s: float,
    *,
    names: Names = NAMES,
    make_scheduler: Callable[..., Scheduler] = Scheduler,
    turned_at: Callable[[], float | None] | None = None,
) -> tuple[ActorSpec, ...]:
    """Those that live where the model is, in the order in which they stop."""
    config, hold = parts.loop_config, Overflow.HOLD
    # The router stands where the gateway would; but losses of a trace are the gateway's own business.
    watcher = ROUTER if names.routed else ""
    started = parts.started if parts.traced else None
    storage, recorder = parts.storage, parts.recorder
    received = Received()
    scheduler = make_scheduler(config, request_timeout_s, started, names)
    scheduler.measures.ranks = parts.runner.ranks
    desk = [ActorSpec(names.detokenizer, PrefillDesk(names), overflow=hold, capacity=_told(config))]
    specs = (
        *(desk if names.role == PREFILL else []),
        ActorSpec(names.scheduler, scheduler, capacity=max(1024, config.max_queued)),
        *(
            [ActorSpec(names.grammar, GrammarCompiler(parts.grammars, names), overflow=hold, capacity=_told(config))]
            if parts.grammars
            else []
        ),
        ActorSpec(names.groups, WeightGroups(parts.runner, received, parts.trainers, names)),
        ActorSpec(names.stager, Stager(parts.runner, received, names)),
        ActorSpec(names.worker, Worker(parts.runner, names, parts.profiler), overflow=hold),
        *([ActorSpec(names.storage, storage)] if storage is not None else []),
        *([ActorSpec(names.linker, Linker(parts.dialer, names))] if parts.dialer is not None else []),
        ActorSpec(names.watchdog, Watchdog(names=names, turned_at=turned_at)),
    )
    traced = [ActorSpec(names.recorder, recorder, capacity=65_536)] if recorder is not None else []
    return in_order((*(spec._replace(watcher=watcher) for spec in specs), *traced), names)


def _told(config: LoopConfig) -> int:
    """A scheduler that is held back may still end every request, each by a message of its own."""
    return max(4096, 2 * config.max_running + config.max_queued)


def spawn_all(
    system: LocalSystem,
    specs: Sequence[ActorSpec],
    *,
    watcher: str = NAMES.gateway,
    loop: asyncio.AbstractEventLoop | None = None,
) -> None:
    """Spawn the actors. Each is watched as its spec says, else by `watcher`, which runs on `loop`, where one is given;
    by nobody where its watcher is not among them."""
    for spec in specs:
        on = loop if spec.name == watcher else None
        system.spawn(spec.actor, spec.name, capacity=spec.capacity, overflow=spec.overflow, loop=on)
    here = stop_order(specs)
    for spec in specs:
        by = spec.watcher or watcher
        if spec.name != by and by in here:
            system.watch(by, spec.name)


def watch_replica(system: LocalSystem, names: Names) -> None:
    """Have the loss of a replica's actors told, of one that came later than the front. Not before the router was told
    of the replica: a `Down` of one that it does not know is lost."""
    for name in sorted(names.own):
        if system.find(name) is not None:
            system.watch(NAMES.gateway if name == names.recorder else ROUTER, name)


def in_order(specs: Sequence[ActorSpec], *names: Names) -> tuple[ActorSpec, ...]:
    """In the order in which they stop."""
    order = all_names(*names)
    return tuple(sorted(specs, key=lambda spec: order.index(spec.name)))


def all_names(*names: Names) -> tuple[str, ...]:
    """Of the actors of an engine in whichever process, in the order in which they stop: upstream first, so that
    everything under way is answered before its answerer goes; the trace ends last. Those of several replicas, called
    `names`, side by side."""
    # Nothing comes for who prefills once those have stopped who ask.
    replicas = sorted(names or (NAMES,), key=lambda each: each.role == PREFILL)
    each = {"front": [FRONT if replicas[0].routed else replicas[0]], "replica": replicas}
    order = [(role, names) for role, process in PROCESS_OF.items() for names in each[process]]
    desks = [("detokenizer", names) for names in replicas if names.role == PREFILL]
    at = order.index(("scheduler", desks[0][1])) if desks else 0
    return tuple(getattr(names, role) for role, names in (*order[:at], *desks, *order[at:]))


def crosses(sender: str, receiver: str) -> bool:
    """Whether messages from the first actor of an engine to the second leave the process, where there are several."""
    return process_of(sender) != process_of(receiver)


def process_of(name: str) -> str:
    """Where the actor of this name lives, where there are several processes; a stranger is with the front."""
    role, _, number = name.partition(".")
    home = "replica" if role == DESK else PROCESS_OF.get(role, "front")
    return home if home == "front" else f"{home}-{number or 0}"


def stop_order(specs: Sequence[ActorSpec]) -> tuple[str, ...]:
    """Names, for `System.stop`."""
    return tuple(spec.name for spec in specs)
