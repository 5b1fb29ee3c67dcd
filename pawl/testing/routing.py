"""The router of a simulated engine: the real one, each of whose choices is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pawl.actors.control import Ask
from pawl.actors.messages.generate import Generate, Opened
from pawl.actors.names import Names
from pawl.actors.placement import PLACEMENTS, Load
from pawl.actors.routed import NOBODY, Routed, stream_of
from pawl.actors.router import Router
from pawl.actors.scaling import FEW, Rule, Since, Verdict, scaled
from pawl.actors.starter import Starter
from pawl.lifecycle.machines.serving import Serving
from pawl.lifecycle.machines.session import SessionPhase
from pawl.lifecycle.request import SessionParameters
from pawl.loops.loop import Loop
from pawl.loops.orders.requests import Abort
from pawl.loops.orders.sessions import CloseSession, OpenSession
from pawl.memory.arrays import Int32s
from pawl.testing.shape import Shape

if TYPE_CHECKING:
    pass

Report = Callable[[str, str, int | None], None]


ROUNDING_S = 1e-6
"""Of times that are told as so long ago."""
NEVER = 1 << 30
"""Open requests that no workload has."""


class WatchedPlacement:
    """Each policy of the router chooses as it is stated, seen from prompts and loads alone. Prefix affinity goes where
    the longest part of a prompt was seen last, and where that replica has more than its bound above the least busy, or
    nothing of the prompt was seen, to the shortest queue."""

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
        return self._least(chosen, loads, lambda load: (load.num_open, load.num_tokens))

    def _total_tokens(self, chosen: Load, loads: Sequence[Load], prompt: bytes, namespace: str) -> str:
        return self._least(chosen, loads, lambda load: (load.num_tokens, load.num_open))

    def _least(self, chosen: Load, loads: Sequence[Load], key: Callable[[Load], tuple[int, int]]) -> str:
        least = min(loads, key=key)
        return "" if key(chosen) == key(least) else f"it had {_told(chosen)}, and another one {_told(least)}"

    def _prefix_affinity(self, chosen: Load, loads: Sequence[Load], prompt: bytes, namespace: str) -> str:
        """Found again by comparing prompts, where the policy has hashes."""
        least, bound = min(load.num_open for load in loads), self._shape.affinity_bound
        if chosen.num_open > least + bound:
            return f"it had {chosen.num_open} open requests, another one {least}, and {bound} more may be"
        seen = self._seen_last(prompt, namespace, {load.replica for load in loads})
        owner = next((load for load in loads if load.replica == seen), None)
        if owner is None or owner.num_open > least + bound:
            return self._shortest_queue(chosen, loads, prompt, namespace)
        if owner.replica == chosen.replica:
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


def _told(load: Load) -> str:
    return f"{load.num_open} open requests of {load.num_tokens} tokens"


def rule_of(shape: Shape) -> Rule:
    """How many replicas there are at which load."""
    if not shape.max_replicas:
        return Rule(shape.replicas, shape.replicas)
    return Rule(1, shape.max_replicas, shape.scale_at or NEVER, shape.scale_up_s, shape.scale_down_s)


class WatchedScaling:
    """The number of replicas stays within its bounds. It changes, of itself, exactly when there were enough open
    requests for each, or few for one less, for as long as the rule says: seen from the history of loads alone. Of those
    that are too many those leave that have the fewest requests."""

    name = "scaling"

    def __init__(self, report: Report) -> None:
        self._report = report
        self._seen: list[tuple[float, Rule, int, int]] = []
        """(when, rule, number, open requests) of each look, and of what it came to."""

    def scaled(self, rule: Rule, since: Since, now: float, wanted: int, num_open: int) -> Verdict:
        """The verdict of the policy, judged."""
        verdict = scaled(rule, since, now, wanted, num_open)
        self._seen.append((now, rule, wanted, num_open))
        few = FEW * rule.at * (wanted - 1)
        high = self._for_long(rule.up_s, lambda load: load >= wanted * rule.at)
        low = self._for_long(rule.down_s, lambda load: load <= few)
        due = max(wanted + 1, -(-num_open // rule.at)) if high and wanted < rule.most else 0
        due = min(due, rule.most) or (wanted - 1 if low and wanted > rule.least else wanted)
        if verdict.wanted != due:
            text = f"{num_open} requests are open, and {wanted} replicas became {verdict.wanted}, not {due}"
            self._report("scaling", text, None)
        if verdict.wanted != wanted:
            self._seen.append((now, rule, verdict.wanted, num_open))
        return verdict

    def _for_long(self, seconds: float, held: Callable[[int], bool]) -> bool:
        """Whether it held at every look of these last seconds, the first of which is as long ago, and nothing else was
        another."""
        now, *same, _ = self._seen[-1]
        for when, *others, load in reversed(self._seen):
            if others != same or not held(load):
                return False
            if when + seconds <= now:
                return True
        return False


class WatchedRouter(Router):
    """A router that must keep turns with their session, aborts until their request comes, and know what replicas have
    to do."""

    loop_of: Callable[[int], Loop]
    """Of a replica's scheduler."""
    is_lost: Callable[[int], bool]
    """Whether a replica is, or stops, though the router may not have heard of it."""

    def __init__(
        self, shape: Shape, replicas: Sequence[Names], starter: Starter, report: Report, *, linked: bool
    ) -> None:
        super().__init__(WatchedPlacement(shape, report), replicas, starter, rule=rule_of(shape), linked=linked)
        size = self.fleet.size
        size.decide, self._dismiss = WatchedScaling(report).scaled, size.dismiss
        size.dismiss = self._dismissed  # type: ignore[method-assign]
        self._report = report
        self._to_end: frozenset[int] = frozenset()
        """Requests that it was told to abort."""
        self._told_to_end: frozenset[int] = frozenset()
        """Those whose replica it has told to."""
        self.ages: dict[tuple[int, int], float] = {}
        """(request, replica that it was given to) -> how long ago it was said to have come."""
        self._came_at: dict[int, float] = {}
        """When each request came."""
        self._opened_at: dict[str, int] = {}
        """Sessions that clients opened and did not close -> the replica that was told to open them."""

    def receive(self, message: Any) -> None:
        super().receive(message)
        if isinstance(message, Ask) and isinstance(order := message.message, OpenSession):
            self._opened_at[order.session] = self.fleet.questions.owner_of(order.session)
        elif isinstance(message, Ask) and isinstance(order, CloseSession):
            self._opened_at.pop(order.session, None)

    def _abort(self, message: Abort) -> None:
        self._to_end |= {*message.requests}
        super()._abort(message)
        there = [self.routed[stream] for request in message.requests if (stream := stream_of(request)) in self.routed]
        due = {routed.generate.request for routed in there if routed.taken and routed.replica != NOBODY}
        for request in sorted(due - self._told_to_end):
            self._report("abort_is_total", "its replica was not told to end it", request)

    def _send_abort(self, owner: int, order: Abort) -> None:
        super()._send_abort(owner, order)
        self._told_to_end |= {*order.requests}

    def _opened(self, message: Opened) -> None:
        routed = self.routed.get(stream_of(message.request))
        due = routed is not None and not routed.taken and routed.finished is None and routed.aborted is not None
        self._told_to_end -= {message.request} if due else set()  # who was told before is lost
        super()._opened(message)
        if due and routed is not None and routed.taken and message.request not in self._told_to_end:
            self._report("abort_is_total", "its next replica was not told to end it", message.request)

    def _place(self, routed: Routed, message: Generate) -> None:
        now, request = self.context.now(), message.request
        age_s = now - self._came_at.setdefault(request, now)
        if abs(message.age_s - age_s) > ROUNDING_S:
            text = f"it came {age_s:g} s ago, and its next replica is told of {message.age_s:g} s"
            self._report("observability_conservation", text, request)
        super()._place(routed, message)
        self.ages[request, routed.replica] = message.age_s

    def _dismissed(self) -> None:
        """Those that leave, as they are too many, have no more requests than any that stays."""
        before = self.fleet.loads()
        self._dismiss()
        taking = {load.replica for load in self.fleet.loads()}
        least = min((load.num_open for load in before if load.replica in taking), default=NEVER)
        for load in before:
            if load.replica not in taking and load.num_open > least:
                text = f"replica {load.replica} leaves with {load.num_open} open requests, and one with {least} stays"
                self._report("scaling", text, None)

    def _take(self, message: Generate) -> None:
        super()._take(message)
        routed = self.routed.get(stream_of(message.request))
        if message.request in self._to_end and routed is not None and routed.aborted is None:
            self._report("abort_is_total", "its abort came before it, and the router has forgotten it", message.request)

    def _owner(self, message: Generate) -> int:
        owner = super()._owner(message)
        staying = [number for number, replica in self.replicas.items() if not replica.leaving]
        if owner not in staying:
            self._report("scaling", f"it is given to replica {owner}, which leaves", message.request)
        held = [number for number in staying if self._takes_turns(number, message.session)]
        if held and owner not in held:
            text = f"a turn goes to replica {owner}, and its session is with {held}"
            self._report("session_atomicity", text, message.request)
        home = NOBODY if message.session is None else self._opened_at.get(message.session.id, NOBODY)
        if home not in (NOBODY, *staying) and self._takes_turns(home, message.session):
            text = f"a turn goes to replica {owner}, which is not told that its session ended with replica {home}"
            self._report("session_atomicity", text, message.request)
        return owner

    def _takes_turns(self, number: int, wanted: SessionParameters | None) -> bool:
        session = None if wanted is None else self.loop_of(number).requests.sessions.by_name.get(wanted.id)
        return session is not None and session.phase is SessionPhase.OPEN

    def settled(self) -> None:
        """Once all that has arrived is handled, loads are what the books come to, and whoever takes part has done what
        all were told."""
        questions = self.fleet.questions
        for number in () if questions.num_lasting else (each for each in self.replicas if not self.is_lost(each)):
            if (self.loop_of(number).serving is Serving.PAUSED) != questions.present.paused:
                paused = "is" if questions.present.paused else "is not"
                self._report("quiescent_flush", f"generation {paused} paused, and replica {number} does not know", None)
        for load in [replica.load for replica in self.replicas.values()]:
            mine = [routed for routed in self.routed.values() if routed.replica == load.replica]
            counted = len(mine), sum(routed.num_tokens for routed in mine)
            if counted != (load.num_open, load.num_tokens):
                self._report("observability_conservation", f"{load}, and {counted} is true", None)
        size = self.fleet.size
        if not len(size.taking) <= size.wanted <= len(size.taking) + size.num_starting:
            text = f"{size.wanted} replicas are wanted, {len(size.taking)} serve, {size.num_starting} are started"
            self._report("scaling", text, None)
        if size.leaving and len(size.taking) < size.wanted:
            text = f"{len(size.leaving)} leave, and of {size.wanted} that are wanted {len(size.taking)} serve"
            self._report("scaling", text, None)
        for replica in self.replicas.values():
            if replica.leaving and not replica.num_open and not self.fleet.questions.waits_for(replica.number):
                self._report("scaling", f"replica {replica.number} leaves, has nothing to do, and does not go", None)
