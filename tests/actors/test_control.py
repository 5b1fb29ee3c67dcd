"""The rows of control messages: each is whole, and everything else follows from it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import msgspec
import pytest

from pawl.actors.control import ROWS, Ask, Body, row_of
from pawl.actors.control.cache import FLUSH_CACHE
from pawl.actors.control.experts import DUMP_EXPERTS, STOP_EXPERTS
from pawl.actors.control.process import CALL, FREEZE_GC, FROZEN, Call
from pawl.actors.control.profiling import STOP_PROFILE, refused
from pawl.actors.control.requests import ABORT, DRAIN, AbortRequests
from pawl.actors.control.state import LOADS, STATE, GetState
from pawl.actors.control_documents import DOCUMENT, document, main
from pawl.actors.control_row import Needs, Row, Who, parameters
from pawl.actors.gateway import Gateway
from pawl.actors.gathering import WRONG_STATE, merged
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import Done, Output, Outputs, Submit, Timing, Usage
from pawl.actors.scheduler import Scheduler
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.sink import Inbox
from pawl.features.row import Seeded
from pawl.gpu.profiler import WrongState
from pawl.lifecycle.states import Cause
from pawl.loops.intake import Order, Outcome
from pawl.loops.orders import ORDERS, order_of
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.requests import Abort
from pawl.testing import Workload

EACH_ROW = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
SCHEDULER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Scheduler.accepts)


@EACH_ROW
def test_every_message_has_a_name_of_its_own_and_says_what_it_does(row: Row) -> None:
    assert [other.name for other in ROWS].count(row.name) == 1
    assert row.help.endswith(".")
    if row.routes:
        assert all(parameter.help for parameter in parameters(row.taken)), "every flag has its help"


def test_no_two_messages_share_a_route() -> None:
    routes = [route for row in ROWS for route in row.routes]
    assert len(routes) == len(set(routes))


@EACH_ROW
def test_a_scheduler_takes_every_message_as_it_travels(row: Row) -> None:
    required = {"requests": [3], "grace_s": 1.0, "session": "s", "capacity": 9, "new_version": "v2", "method": "state"}
    required |= {"lora_name": "x", "lora_path": "y", "number": 1}
    required |= {"source": {"type": "FromSharedMemory", "name": "weights", "size": 8}}
    names = {field.encode_name for field in msgspec.structs.fields(row.message)}
    needed = {name: value for name, value in required.items() if name in names}
    bodies = (row.draw(Seeded(seed)) for seed in range(300))
    drawn = next((body for body in bodies if isinstance(body, row.message)), None)
    ask = Ask(7, msgspec.convert(needed, row.message) if drawn is None else drawn)
    assert SCHEDULER.decode(msgspec.msgpack.encode(ask)) == ask


def test_what_a_message_needs_and_whether_it_is_replayed_follow_from_its_type() -> None:
    assert [FLUSH_CACHE.needs, ABORT.needs, STATE.needs] == [Needs.REST, Needs.BETWEEN_STEPS, Needs.NOTHING]
    assert [row.replayed for row in (FLUSH_CACHE, ABORT, STATE, LOADS)] == [True, True, False, False]


def test_every_order_has_a_tag_of_its_own_and_is_read_again_as_it_was_recorded() -> None:
    tags = [str(order.__struct_config__.tag) for order in ORDERS]
    assert len(tags) == len(set(tags))
    for order in (Abort((1, 2), Cause.DISCONNECT, "gone"), FlushCache(2.5)):
        fields: dict[str, Any] = msgspec.to_builtins(order)
        assert order_of(fields.pop("type"), fields) == order


def test_an_order_that_waits_for_rest_says_how_long() -> None:
    waiting = [order for order in ORDERS if order.at_rest]
    assert FlushCache in waiting
    assert all("timeout_s" in order.__struct_fields__ for order in waiting)


def test_acting_on_requests_of_others_and_seeing_them_is_for_admins() -> None:
    assert FLUSH_CACHE.who is ABORT.who is Who.ADMIN
    assert STATE.admin_when is not None
    assert [STATE.admin_when(GetState(detail)) for detail in (True, False)] == [True, False]


@EACH_ROW
def test_what_simulated_clients_send_is_a_body_of_the_row(row: Row) -> None:
    drawn = [body for seed in range(300) if (body := row.draw(Seeded(seed))) is not None]
    assert all(isinstance(body, row.taken) for body in drawn)
    assert len(drawn) < 300, "most runs are without it"


def test_exploration_sends_each_message_that_can_be_drawn() -> None:
    sent = {row_of(control.body).name for seed in range(200) for control in Workload.random(seed).controls}
    assert sent == {row.name for row in ROWS if row.drawn} >= {"flush-cache", "abort", "state"}


def test_a_workload_with_messages_survives_its_encoding() -> None:
    workload = next(w for w in map(Workload.random, range(200)) if len(w.controls) > 1)
    assert Workload.decode(workload.encode()) == workload
    assert msgspec.json.decode(msgspec.json.encode(GetState(True)), type=Body) == GetState(True)


def test_an_answer_that_contradicts_itself_is_noticed() -> None:
    live = {"waiting": 0, "running": 1, "in_flight": 0}
    rest = dict.fromkeys(live, 0)
    assert FLUSH_CACHE.check(FlushCache(), Reply(1, True, body=rest)) is None
    assert FLUSH_CACHE.check(FlushCache(), Reply(1, True, body=live)) is not None
    assert FLUSH_CACHE.check(FlushCache(), Reply(1, False, body=live)) is None
    assert FLUSH_CACHE.check(FlushCache(), Reply(1, False, body=rest)) is not None
    everything = AbortRequests(abort_all=True)
    assert ABORT.check(everything, Reply(1, True, body={"num_pending": 0})) is None
    assert ABORT.check(everything, Reply(1, True, body={"num_pending": 1})) is not None
    listed = {"live": [{"state": "decoding"}], "requests": {"decoding": 1}}
    assert STATE.check(GetState(True), Reply(1, True, body=listed)) is None
    assert STATE.check(GetState(True), Reply(1, True, body=listed | {"live": []})) is not None
    assert STATE.check(GetState(True), Reply(1, True, body=listed | {"requests": {"finished": 1}})) is not None
    assert STATE.check(GetState(True), Reply(1, False, "no answer")) is not None


def test_the_page_of_control_messages_is_what_the_rows_say() -> None:
    assert DOCUMENT.read_text() == document()
    assert main(["--check"]) == 0


# ---- ending requests by name ----


class Desk:
    """A gateway with live requests, and what an abort was answered."""

    def __init__(self, *names: str) -> None:
        self.gateway = Gateway()
        self.context = ManualContext(self.gateway, "gateway")
        self.numbers = self.gateway.submit(
            [Submit(request=0, rid=name, text="x") for name in names], [Inbox() for _ in names]
        )
        self.replies: list[Reply] = []

    def abort(self, **fields: Any) -> None:
        ABORT.put(self.gateway, AbortRequests(**fields), self.replies.append)

    def end(self, number: int) -> None:
        done = Done(Cause.CLIENT, Usage(1, 0, 0), Timing(0.0))
        self.gateway.receive(Outputs((Output(number, "", (), done=done),)))


def test_an_abort_is_answered_when_the_last_of_its_requests_has_ended() -> None:
    desk = Desk("a", "a", "b")
    desk.abort(rid=["a", "c"])
    orders = [sent.message for sent in desk.context.take_sent() if isinstance(sent.message, Order)]
    assert orders == [Abort(desk.numbers[:2])]
    desk.end(desk.numbers[0])
    assert desk.replies == []
    desk.end(desk.numbers[1])
    (reply,) = desk.replies
    assert reply.body == {"success": False, "ended": ["a"], "pending": [], "unknown": ["c"]}
    desk.context.advance(60.0)
    assert len(desk.replies) == 1


def test_an_abort_of_what_does_not_end_is_answered_in_time_and_once() -> None:
    desk = Desk("a", "b")
    desk.abort(abort_all=True)
    desk.end(desk.numbers[0])
    desk.context.advance(60.0)
    desk.end(desk.numbers[1])
    (reply,) = desk.replies
    assert reply.body == {"success": True, "num_ended": 1, "num_pending": 1}
    assert desk.gateway.asks.num_late == 0


def test_answers_of_several_that_are_not_of_one_kind_stand_side_by_side() -> None:
    replies = [Reply(0, True, body={"a": first, "b": 1}) for first in ({"c": 2}, "none")]
    for given in (replies, replies[::-1]):
        assert merged(given).body == {"a": [reply.body["a"] for reply in given], "b": 1}


@pytest.mark.parametrize("row", [STOP_PROFILE, STOP_EXPERTS, DUMP_EXPERTS], ids=lambda row: row.name)
def test_what_one_replica_had_begun_is_ended_though_another_one_had_not(row: Row) -> None:
    ended = Reply(1, True, "Stopped.", {"files": ["x"]})
    late = Reply(2, False, "none is under way", {WRONG_STATE: True})
    broken = Reply(3, False, "no room", {})
    together = row.merge([late, ended])
    assert (row.show(together, {}), together.ok) == (
        (200, {"success": True, "message": "none is under way | Stopped.", "files": ["x"]}),
        True,
    )
    assert row.show(row.merge([late, late]), {})[0] == 409
    assert row.show(row.merge([late, ended, broken]), {})[0] == 400


def test_a_profile_that_is_refused_says_whether_the_state_is_wrong() -> None:
    assert refused(WrongState("one runs")) == Outcome(False, "one runs", {"wrong_state": True})
    assert refused(OSError("no room")) == Outcome(False, "no room", {})


def test_an_abort_of_nobody_is_answered_at_once() -> None:
    desk = Desk()
    desk.abort(abort_all=True)
    desk.abort(rid="a")
    desk.abort()
    assert [reply.ok for reply in desk.replies] == [True, True, False]


# ---- calls by name ----


class Put:
    """A gateway that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, float]] = []

    def ask(self, message: Any, answer: Any, timeout_s: float) -> int:
        self.asked.append((message, timeout_s))
        return 1


def test_a_call_by_name_is_the_message_of_that_name_and_who_is_unknown_is_told_whom_there_are() -> None:
    gateway, said = Put(), list[Reply]()

    def call(method: str, parameters: dict[str, Any] | None = None) -> None:
        CALL.put(gateway, Call(method, parameters), said.append)  # type: ignore[arg-type]

    call("flush-cache", {"timeout": 2.5})
    call("state")
    assert gateway.asked == [(FlushCache(2.5), FLUSH_CACHE.patience_s + 2.5), (GetState(), STATE.patience_s)]
    assert said == []
    for unknown in ("flush", "pause (vLLM)", DRAIN.name, CALL.name):
        call(unknown)
    call("flush-cache", {"timeouts": 1.0})
    known = sorted(row.name for row in ROWS if row.routes and row.command)
    assert [reply.message for reply in said[:4]] == [
        f"there is no method {name!r}; there are {', '.join(known)}"
        for name in ("flush", "pause (vLLM)", DRAIN.name, CALL.name)
    ]
    assert said[4].message.startswith("flush-cache: ")
    assert [reply.ok for reply in said] == [False] * 5
    assert len(gateway.asked) == 2


def test_what_lives_is_left_out_of_what_is_collected() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

    before, garbage = gc.get_freeze_count(), weakref.ref(Cycle())
    try:
        outcome = FREEZE_GC.look(None, FREEZE_GC.message())  # type: ignore[arg-type]
        assert (outcome.ok, outcome.message) == (True, FROZEN)
        assert outcome.facts == {"frozen_objects": gc.get_freeze_count()}
        assert gc.get_freeze_count() > before
        assert garbage() is None, "it was garbage, and is not left over"
    finally:
        gc.unfreeze()
