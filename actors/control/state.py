"""What the scheduler says of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np

from pawl.actors.control_row import Facts, Row, Shown, Source, plain
from pawl.actors.gathering import merged
from pawl.actors.messages.control import Reply
from pawl.lifecycle.machines.adapter import AdapterPhase
from pawl.lifecycle.machines.session import SessionPhase
from pawl.lifecycle.requests import RequestTable
from pawl.lifecycle.states import State
from pawl.loops.adapter import Adapter
from pawl.loops.intake import Outcome
from pawl.loops.sessions import Session

if TYPE_CHECKING:
    from pawl.actors.scheduler import Scheduler

PATIENCE_S = 2.0
_STATE_NAMES = {int(state): state.name.lower() for state in State}
"""By number; not every number has a state."""


class GetState(msgspec.Struct, frozen=True, tag="get_state", forbid_unknown_fields=True):
    """Settings of the server, and queues, memory and counters of the scheduler."""

    detail: Annotated[
        bool, msgspec.Meta(description="list every live request, session and adapter, and the digest of memory")
    ] = False


class GetLoads(msgspec.Struct, frozen=True, tag="get_loads", forbid_unknown_fields=True):
    """How busy each scheduler is, for routers."""


class GetLoad(msgspec.Struct, frozen=True, tag="get_load", forbid_unknown_fields=True):
    """The same as SGLang's router asks for it."""


class Load(msgspec.Struct, frozen=True):
    """Of one scheduler; tokens are those of the pages in use, and of all pages."""

    dp_rank: int
    num_running_reqs: int
    num_waiting_reqs: int
    num_total_reqs: int
    num_used_tokens: int
    max_total_num_tokens: int


class RouterLoad(msgspec.Struct, frozen=True):
    """Of one scheduler, as SGLang's router reads it."""

    dp_rank: int
    num_reqs: int
    num_waiting_reqs: int
    num_tokens: int


class LoadsReply(msgspec.Struct, frozen=True):
    """One entry for each scheduler."""

    version: str
    dp_rank_count: int
    loads: list[Load]


def state_of(scheduler: Scheduler, question: GetState) -> Outcome:
    """Counters and gauges; with `detail` every live request, session and adapter."""
    loop, trace, weights = scheduler.loop, scheduler.trace, scheduler.intake.weights
    table, memory = loop.table, loop.memory
    sessions = loop.requests.sessions.by_name.values()
    adapters: Collection[Adapter] = (
        () if scheduler.intake.adapters is None else scheduler.intake.adapters.by_number.values()
    )
    states = np.bincount(table.state[table.live_rows()], minlength=max(State) + 1)
    facts: dict[str, Any] = {
        "requests": {name: int(states[state]) for state, name in _STATE_NAMES.items() if states[state]},
        "serving": str(loop.serving),
        **loop.limits.in_force(),
        "effective_max_running_requests_per_dp": loop.limits.now.max_running,
        "forward_sleep_time": loop.limits.now.step_delay_s or None,
        **scheduler.intake.memory.facts,
        "waiting": loop.queues.num_waiting,
        "running": loop.queues.num_running,
        "in_flight": len(loop.in_flight),
        "pages": memory.pages.counters() | {"page_size": memory.page_size},
        "slots": {"total": memory.slots.total, "free": memory.slots.free},
        "sessions": _by_phase(sessions, (SessionPhase.OPEN, SessionPhase.CLOSING)),
        "adapters": _by_phase(adapters, (phase for phase in AdapterPhase if phase is not AdapterPhase.GONE)),
        "weights": {"state": str(weights.phase), "version": weights.served.version},
        "cache": memory.cache.statistics() | {"evictable": memory.cache.evictable, "held": memory.cache.held},
        "trace_gaps": trace.num_lost_total if trace is not None else 0,
        "violations": dict(scheduler.violations),
        "counters": msgspec.to_builtins(loop.counters),
        "steps": scheduler.measures.facts(),
        **scheduler.tier_client.state(),
        "ranks": msgspec.to_builtins(scheduler.measures.ranks),
    }
    for windows in memory.pools[1:]:
        facts["window_pages"] = windows.counters()
    if loop.counters.drafts:
        # As SGLang has it: what a decode step with a draft gives, the token after the draft included.
        facts["avg_spec_accept_length"] = 1 + loop.counters.accepted_tokens / loop.counters.drafts
    if question.detail:
        facts["live"] = _live(table, scheduler.context.now())
        facts["open_sessions"] = [_session(session) for session in sessions]
        facts["loaded_adapters"] = [_adapter(adapter) for adapter in adapters]
        facts["digest"] = f"{memory.digest():016x}"
    return Outcome(True, facts=facts)


def _by_phase(things: Iterable[Session | Adapter], phases: Iterable[StrEnum]) -> dict[str, int]:
    """How many there are in each of these phases."""
    counts = Counter(str(thing.phase) for thing in things)
    return {str(phase): counts[str(phase)] for phase in phases}


def _adapter(adapter: Adapter) -> dict[str, Any]:
    return {"name": adapter.name, "state": str(adapter.phase), "resident": adapter.resident, "pinned": adapter.pinned}


def _session(session: Session) -> dict[str, Any]:
    return {
        "session_id": session.name,
        "state": str(session.phase),
        "turns": len(session.turns),
        "live_turns": len(session.live),
        "tokens": session.size,
    }


def _live(table: RequestTable, now: float) -> list[dict[str, Any]]:
    """Every live request. Columns are read as wholes: a thousand requests take a millisecond of the scheduler."""
    rows = table.live_rows()
    columns = (table.state, table.num_prompt, table.num_tokens, table.max_tokens)
    listed = zip(rows.tolist(), *(column[rows].tolist() for column in columns), strict=True)
    return [
        {
            "request": (info := table.info(row)).request,
            "rid": info.rid,
            "state": _STATE_NAMES[state],
            "prompt_tokens": prompt,
            "output_tokens": tokens - prompt,
            "max_new_tokens": most - prompt,
            "cached_tokens": info.num_cached,
            "retractions": info.num_retractions,
            "age_s": round(now - info.submitted, 3),
        }
        for row, state, prompt, tokens, most in listed
    ]


def loads_of(scheduler: Scheduler, question: GetLoads | GetLoad) -> Outcome:
    """One load; who may ask knows of one scheduler."""
    queues, pages, size = scheduler.loop.queues, scheduler.loop.memory.pages, scheduler.loop.memory.page_size
    running, waiting = queues.num_running, queues.num_waiting
    used = (pages.owned + pages.deferred) * size
    load = Load(0, running, waiting, running + waiting, used, pages.total * size)
    return Outcome(True, facts={"loads": [msgspec.to_builtins(load)]})


def states_of(reply: Reply) -> Sequence[dict[str, Any]]:
    """What each scheduler says of itself."""
    states: Sequence[dict[str, Any]] = reply.body.get("replicas", [reply.body])
    return states


def _merge_states(replies: Sequence[Reply]) -> Reply:
    """Side by side."""
    return msgspec.structs.replace(merged(replies), body={"replicas": [reply.body for reply in replies]})


def _merge_loads(replies: Sequence[Reply]) -> Reply:
    """Side by side, in the order of replicas: those that are started again have new numbers."""
    loads = [load for reply in replies for load in reply.body.get("loads", [])]
    ranked = [load | {"dp_rank": rank} for rank, load in enumerate(loads)]
    return msgspec.structs.replace(merged(replies), body={"loads": ranked})


def _show_state(reply: Reply, facts: Facts) -> Shown:
    # Clients of SGLang look for the schedulers' own words here, one entry for each.
    states = states_of(reply) if reply.ok else [{"error": reply.message}]
    return HTTPStatus.OK, {**facts, "ranks": _ranks_of(states), "internal_states": states}


def _ranks_of(states: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of all replicas."""
    return [{"replica": place, **rank} for place, state in enumerate(states) for rank in state.get("ranks", ())]


def _show_loads(reply: Reply, facts: Facts) -> Shown:
    if not reply.ok:
        return HTTPStatus.SERVICE_UNAVAILABLE, plain(reply, facts)[1]
    return HTTPStatus.OK, {"version": facts["version"], "dp_rank_count": len(reply.body["loads"]), **reply.body}


def _show_load(reply: Reply, facts: Facts) -> Shown:
    if not reply.ok:
        return HTTPStatus.SERVICE_UNAVAILABLE, plain(reply, facts)[1]
    names = {"num_total_reqs": "num_reqs", "num_used_tokens": "num_tokens"}
    kept = ("dp_rank", "num_total_reqs", "num_waiting_reqs", "num_used_tokens")
    return HTTPStatus.OK, [{names.get(name, name): load[name] for name in kept} for load in reply.body["loads"]]


def _drawn(source: Source) -> GetState | None:
    return GetState(detail=True) if source.chance(0.1) else None


def _check(body: GetState, reply: Reply) -> str | None:
    """No scheduler's state may contradict itself."""
    if not reply.ok:
        return reply.message
    for state in states_of(reply):
        live, counted = Counter(each["state"] for each in state["live"]), state["requests"]
        if live != counted:
            return f"live requests are listed as {dict(live)}, and counted as {counted}"
    return None


STATE = Row(
    name="state",
    message=GetState,
    look=state_of,
    show=_show_state,
    merge=_merge_states,
    routes=("/server_info", "/get_server_info", "/get_internal_state"),
    methods=("GET",),
    admin_when=lambda body: body.detail,
    patience_s=PATIENCE_S,
    draw=_drawn,
    check=_check,
    proves="observability_conservation",
)

LOADS = Row(
    name="loads",
    message=GetLoads,
    look=loads_of,
    reply=LoadsReply,
    show=_show_loads,
    merge=_merge_loads,
    routes=("/v1/loads",),
    methods=("GET",),
    patience_s=PATIENCE_S,
)

LOAD = Row(
    name="load",
    message=GetLoad,
    look=loads_of,
    reply=list[RouterLoad],
    show=_show_load,
    merge=_merge_loads,
    routes=("/get_load",),
    methods=("GET",),
    command=False,
    patience_s=PATIENCE_S,
)
