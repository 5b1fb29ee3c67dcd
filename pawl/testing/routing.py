"""The router of a simulated engine: the real one, each of whose choices is judged; and who starts replicas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pawl.actors.messages.generate import Generate
from pawl.actors.messages.replicas import ReplicaUp
from pawl.actors.names import ROUTER, Names
from pawl.actors.placement import PLACEMENTS, Load
from pawl.actors.routed import NOBODY, stream_of
from pawl.actors.router import Router
from pawl.actors.starter import Starter
from pawl.build.wiring import watch_replica
from pawl.lifecycle.machines.session import SessionPhase
from pawl.lifecycle.request import SessionParameters
from pawl.loops.orders.requests import Abort
from pawl.loops.sessions import Session
from pawl.memory.arrays import Int32s
from pawl.testing.workload import Shape

if TYPE_CHECKING:
    from pawl.testing.cluster import Cluster

Report = Callable[[str, str, int | None], None]


class SimulatedStarter:
    """Starts as many replicas again as the workload says."""

    def __init__(self, run: Cluster) -> None:
        self._run = run
        self._left = run.workload.shape.max_restarts

    def restart(self, lost: Names, *, why_not: str = "") -> str:
        """The rest of the lost one handles what waits for it, and ends."""
        for replica in self._run.replicas:
            replica.lost = replica.lost or replica.names == lost
        for name in lost.own & self._run.actors.keys():
            if (cell := self._run.system.find(name)) is not None:
                cell.ask_to_stop("its replica is lost")
        if why_not or not self._left or self._run.closing:
            return why_not or "as many were started as the workload says"
        self._left -= 1
        names = self._run.start_replica(lost.role).names
        self._run.system.send(ROUTER, ReplicaUp(names))
        watch_replica(self._run.system, names)
        return ""

    def over(self, name: str, reason: str) -> None:
        """Clients are told by the gateway."""


class WatchedPlacement:
    """Each policy of the router chooses as it is stated, seen from prompts and loads alone. Prefix affinity goes where
    the longest part of a prompt was seen last, and to no replica that has more than its bound above the least busy."""

    name = "placement"

    def __init__(self, shape: Shape, report: Report) -> None:
        self._policy = PLACEMENTS[shape.placement](shape.page_size, shape.affinity_bound)
        self._judge = getattr(self, f"_{shape.placement}")
        self._shape = shape
        self._report = report
        self._given: list[tuple[bytes, str, int]] = []
        """(prompt, namespace, replica) of each request, in the order in which they were given away."""

    def place(self, tokens: Int32s, namespace: str, loads: Sequence[Load]) -> int:
        owner = self._policy.place(tokens, namespace, loads)
        chosen = next((load for load in loads if load.replica == owner), None)
        prompt = tokens.tobytes()
        wrong = "there is none" if chosen is None else self._judge(chosen, loads, prompt, namespace)
        if wrong:
            self._report(self.name, f"{self._shape.placement} chose replica {owner}: {wrong}", None)
        self._given.append((prompt, namespace, owner))
        return owner

    def _round_robin(self, chosen: Load, loads: Sequence[Load], prompt: bytes, namespace: str) -> str:
        last = self._given[-1][2] if self._given else NOBODY
        due = next((load.replica for load in loads if load.replica > last), loads[0].replica)
        return "" if chosen.replica == due else f"replica {due} was next"

    def _shortest_queue(self, chosen: Load, loads: Sequence[Load], prompt: bytes, namespace: str) -> str:
        least = min(load.num_open for load in loads)
        return "" if chosen.num_open == least else f"it had {chosen.num_open} open requests, another one {least}"

    def _total_tokens(self, chosen: Load, loads: Sequence[Load], prompt: bytes, namespace: str) -> str:
        least = min(load.num_tokens for load in loads)
        return "" if chosen.num_tokens == least else f"it had {chosen.num_tokens} tokens, another one {least}"

    def _prefix_affinity(self, chosen: Load, loads: Sequence[Load], prompt: bytes, namespace: str) -> str:
        """Found again by comparing prompts, where the policy has hashes."""
        least, bound = min(load.num_open for load in loads), self._shape.affinity_bound
        if chosen.num_open > least + bound:
            return f"it had {chosen.num_open} open requests, another one {least}, and {bound} more may be"
        seen = self._seen_last(prompt, namespace, {load.replica for load in loads})
        owner = next((load for load in loads if load.replica == seen), None)
        if owner is None or owner.num_open > least + bound or owner.replica == chosen.replica:
            return ""
        return f"the longest part of its prompt was seen last by replica {owner.replica}, which was not too busy"

    def _seen_last(self, prompt: bytes, namespace: str, serving: set[int]) -> int:
        """The replica that had the longest beginning of the prompt last, in whole pages."""
        size = self._shape.page_size * 4
        for end in range(len(prompt) // size * size, 0, -size):
            for given, other, replica in reversed(self._given):
                if namespace == other and len(given) >= end and given[:end] == prompt[:end]:
                    if replica in serving:
                        return replica
                    break
        return NOBODY


class WatchedRouter(Router):
    """A router that must keep turns with their session, aborts until their request comes, and know what replicas have
    to do."""

    sessions_of: Callable[[int], Mapping[str, Session]]
    """Those that a replica's scheduler has, by name."""

    def __init__(
        self, shape: Shape, replicas: Sequence[Names], starter: Starter, report: Report, *, linked: bool
    ) -> None:
        super().__init__(WatchedPlacement(shape, report), replicas, starter, linked=linked)
        self._report = report
        self._to_end: frozenset[int] = frozenset()
        """Requests that it was told to abort."""

    def _abort(self, message: Abort) -> None:
        self._to_end |= {*message.requests}
        super()._abort(message)

    def _take(self, message: Generate) -> None:
        super()._take(message)
        routed = self.routed.get(stream_of(message.request))
        if message.request in self._to_end and routed is not None and routed.aborted is None:
            self._report("abort_is_total", "its abort came before it, and the router has forgotten it", message.request)

    def _owner(self, message: Generate) -> int:
        owner = super()._owner(message)
        held = [number for number in self.replicas if self._takes_turns(number, message.session)]
        if held and owner not in held:
            text = f"a turn goes to replica {owner}, and its session is with {held}"
            self._report("session_atomicity", text, message.request)
        return owner

    def _takes_turns(self, number: int, wanted: SessionParameters | None) -> bool:
        session = None if wanted is None else self.sessions_of(number).get(wanted.id)
        return session is not None and session.phase is SessionPhase.OPEN

    def settled(self) -> None:
        """Once all that has arrived is handled, loads are what the books come to."""
        for load in self.fleet.loads():
            mine = [routed for routed in self.routed.values() if routed.replica == load.replica]
            counted = len(mine), sum(routed.num_tokens for routed in mine)
            if counted != (load.num_open, load.num_tokens):
                self._report("observability_conservation", f"{load}, and {counted} is true", None)
