"""What judges the answers to control messages in a simulated run: whatever no server may say is told, whatever a sound
one says is not. And what clients are shown, drawn, and what becomes of several answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import pytest

from pawl.actors.control import ROWS
from pawl.actors.control.adapters import LOAD_ADAPTER, LOAD_LORA, LoadLora, UnloadLora
from pawl.actors.control.cache import FLUSH_CACHE
from pawl.actors.control.experts import DUMP_EXPERTS, REBALANCE_EXPERTS, DumpExpertRecord, RebalanceExperts
from pawl.actors.control.limits import SET_STATE, SetInternalState
from pawl.actors.control.memory import (
    IS_SLEEPING,
    NOT_WAITING,
    RELEASE_MEMORY,
    RESUME_MEMORY,
    SLEEP_BY_VLLM,
)
from pawl.actors.control.requests import ABORT
from pawl.actors.control.scaling import SCALE, ScaleReplicas
from pawl.actors.control.serving import PAUSE, PAUSE_BY_VLLM, PauseByVllm, PauseGeneration
from pawl.actors.control.sessions import CLOSE_SESSION, OPEN_SESSION
from pawl.actors.control.state import LOAD, LOADS, STATE, GetLoads, GetState
from pawl.actors.control.weight_groups import JOIN_GROUP, RECEIVE_WEIGHTS
from pawl.actors.control.weights import (
    CHECK_WEIGHTS,
    GET_WEIGHTS,
    PUT_WEIGHTS,
    UPDATE_WEIGHTS,
    SendWeights,
    send,
)
from pawl.actors.control_row import Row
from pawl.actors.messages.adapters import UNREAD
from pawl.actors.messages.control import LATE, Reply
from pawl.actors.weight_questions import CheckWeights, GetWeights
from pawl.features.row import Seeded
from pawl.loops.adapters import NOT_ENABLED
from pawl.loops.orders.adapters import LoadAdapter
from pawl.loops.orders.memory import ReleaseMemory
from pawl.loops.orders.weight_groups import JoinWeightGroup, ReceiveWeights
from pawl.loops.orders.weights import UpdateWeights
from pawl.loops.residency import LIVE
from pawl.loops.weights import BUSY


def yes(**body: Any) -> Reply:
    return Reply(1, True, "done", body)


def no(message: str, **body: Any) -> Reply:
    return Reply(1, False, message, body)


def joins(address: str = "localhost", size: int = 2) -> JoinWeightGroup:
    return JoinWeightGroup(
        master_address=address, master_port=1, rank_offset=1, world_size=size, group_name="g", backend="gloo"
    )


def receives(*names: str) -> ReceiveWeights:
    return ReceiveWeights(
        names=names, dtypes=("uint64",) * len(names), shapes=((1,),) * len(names), group_name="g", last=True
    )


THERE, NOT_THERE = LoadAdapter(name="x", path="ghost:a"), LoadAdapter(name="x", path="nowhere")
FITS, DOES_NOT = SendWeights(safetensors=b"ghost.second"), SendWeights(safetensors=b"ghost.secant")
DISK, NO_DISK = UpdateWeights(model_path="ghost:a"), UpdateWeights(model_path="nowhere")
LIMIT = SetInternalState({"max_running_requests": 2})
COUNTED = {"layers_with_experts": [1], "num_tokens": 3, "num_experts_per_token": 2}
DUMP = DumpExpertRecord()
FIRST, SECOND = "ghost.first", "ghost.second"
SOUND: list[tuple[Row, Any, Reply]] = [
    (LOAD_ADAPTER, THERE, yes()),
    (LOAD_ADAPTER, THERE, no(NOT_ENABLED)),
    (LOAD_ADAPTER, THERE, no(UNREAD)),
    (LOAD_ADAPTER, NOT_THERE, no("there is none")),
    (UPDATE_WEIGHTS, DISK, yes()),
    (UPDATE_WEIGHTS, DISK, no(BUSY)),
    (UPDATE_WEIGHTS, NO_DISK, no("there are none")),
    (PUT_WEIGHTS, FITS, yes()),
    (PUT_WEIGHTS, FITS, no(BUSY)),
    (PUT_WEIGHTS, DOES_NOT, no("they do not")),
    (GET_WEIGHTS, GetWeights(name=FIRST), no("moving")),
    (CHECK_WEIGHTS, CheckWeights(), yes()),
    (CHECK_WEIGHTS, CheckWeights(), yes(ranks=[{"checksums": {"a": "1"}}, {"checksums": None}])),
    (SET_STATE, LIMIT, yes(server_args={"max_running": 2, "max_queued": 3})),
    (SET_STATE, LIMIT, no("too many")),
    (RELEASE_MEMORY, ReleaseMemory(), yes()),
    (RELEASE_MEMORY, ReleaseMemory(), no(LIVE)),
    (SCALE, ScaleReplicas(2), yes(wanted=2, serving=1, starting=1)),
    (SCALE, ScaleReplicas(2), yes(wanted=2, serving=2, starting=0)),
    (SCALE, ScaleReplicas(2), no("no room")),
    (PAUSE, PauseGeneration("abort"), yes()),
    (PAUSE_BY_VLLM, PauseByVllm(), yes()),
    (PAUSE_BY_VLLM, PauseByVllm(), no("live", paused=False)),
    (OPEN_SESSION, None, no("it is open already")),
    (JOIN_GROUP, joins(), yes()),
    (JOIN_GROUP, joins("elsewhere"), no("none of the hosts")),
    (RECEIVE_WEIGHTS, receives(FIRST, SECOND), yes()),
    (RECEIVE_WEIGHTS, receives(FIRST, "ghost.third"), no("no such weight")),
    (DUMP_EXPERTS, DUMP, yes(logical_count=[[0, 0], [4, 2]], failed_steps=0, **COUNTED)),
    (DUMP_EXPERTS, DUMP, yes(logical_count=[[1, 0], [4, 2]], failed_steps=1, **COUNTED)),
    (DUMP_EXPERTS, DUMP, no("none are recorded")),
    (REBALANCE_EXPERTS, RebalanceExperts(), no("they lie well")),
    (REBALANCE_EXPERTS, RebalanceExperts(), yes(layers=1, imbalance_before=2.0, imbalance_after=1.0)),
]
WRONG: list[tuple[Row, Any, Reply]] = [
    (LOAD_ADAPTER, NOT_THERE, yes()),
    (LOAD_ADAPTER, THERE, no("no reason of ours")),
    (LOAD_ADAPTER, NOT_THERE, no("")),
    (UPDATE_WEIGHTS, NO_DISK, yes()),
    (UPDATE_WEIGHTS, DISK, no("no reason of ours")),
    (UPDATE_WEIGHTS, NO_DISK, no("")),
    (PUT_WEIGHTS, DOES_NOT, yes()),
    (PUT_WEIGHTS, FITS, no("no reason of ours")),
    (PUT_WEIGHTS, DOES_NOT, no("")),
    (PUT_WEIGHTS, SendWeights(), yes()),
    (GET_WEIGHTS, GetWeights(name=FIRST), no("")),
    (GET_WEIGHTS, GetWeights(name=FIRST), yes(values=[0.5])),
    (CHECK_WEIGHTS, CheckWeights(), no("moving")),
    (CHECK_WEIGHTS, CheckWeights(), yes(ranks=[{"checksums": {"a": "1"}}, {"checksums": {}}])),
    (SET_STATE, LIMIT, yes(server_args={"max_running": 3})),
    (SET_STATE, LIMIT, yes()),
    (RELEASE_MEMORY, ReleaseMemory(), no("no reason of ours")),
    (RESUME_MEMORY, ReleaseMemory(), no("")),
    (SLEEP_BY_VLLM, ReleaseMemory(), no("")),
    (SCALE, ScaleReplicas(2), yes(wanted=3, serving=2, starting=1)),
    (SCALE, ScaleReplicas(2), yes(wanted=2, serving=1, starting=0)),
    (SCALE, ScaleReplicas(2), yes(wanted=2, serving=3, starting=0)),
    (PAUSE, PauseGeneration("abort"), no("live")),
    (PAUSE, PauseGeneration("abort"), yes(num_pending=1)),
    (PAUSE_BY_VLLM, PauseByVllm(), no("live", paused=True)),
    (PAUSE_BY_VLLM, PauseByVllm(), no("live")),
    (ABORT, None, yes(num_pending=1)),
    (OPEN_SESSION, None, no("no reason of ours")),
    (JOIN_GROUP, joins("elsewhere"), yes()),
    (JOIN_GROUP, joins(size=1), yes()),
    (JOIN_GROUP, joins(), no("")),
    (JOIN_GROUP, joins(), no(f"{LATE} after 2 s")),
    (RECEIVE_WEIGHTS, receives(FIRST, "ghost.third"), yes()),
    (RECEIVE_WEIGHTS, receives(FIRST), no("")),
    (STATE, GetState(True), no("late")),
    (DUMP_EXPERTS, DUMP, yes(logical_count=[[0, 0], [4, 1]], failed_steps=0, **COUNTED)),
    (DUMP_EXPERTS, DUMP, yes(logical_count=[[1, 0], [4, 2]], failed_steps=0, **COUNTED)),
    (REBALANCE_EXPERTS, RebalanceExperts(), no("")),
    (REBALANCE_EXPERTS, RebalanceExperts(), yes(layers=1, imbalance_before=2.0, imbalance_after=2.0)),
]


def test_what_a_sound_server_answers_is_no_fault() -> None:
    assert [(row.name, said) for row, body, reply in SOUND if (said := row.check(body, reply))] == []


def test_what_no_server_may_answer_is_told() -> None:
    assert [(row.name, reply) for row, body, reply in WRONG if not row.check(body, reply)] == []


def test_whoever_judges_answers_has_an_answer_here_that_is_wrong() -> None:
    judged = {row.name for row, _, _ in WRONG} | {FLUSH_CACHE.name}
    judging = {row.name for row in ROWS if row.check.__name__ != "<lambda>" and row.drawn}
    assert judging <= judged


DRAWN = {
    "load-adapter": {"name": 3, "path": 6, "pinned": 2},
    "unload-adapter": {"name": 3},
    "flush-cache": {"timeout_s": 2},
    "slow-down": {"forward_sleep_time": 3},
    "release-memory": {"tags": 8, "timeout_s": 2},
    "resume-memory": {"tags": 8},
    "sleep (vLLM)": {"mode": 2},
    "start-profile": {"start_step": 2, "num_steps": 3, "warmup": 2, "profile_by_stage": 2},
    "set-state": {"server_args": 8},
    "scale-replicas": {"replicas": 4, "grace_s": 3, "on_load": 3},
    "pause": {"mode": 3},
    "pause (vLLM)": {"mode": 2, "clear_cache": 2},
    "open-session": {"capacity": 3, "streaming": 2, "expires_s": 2},
    "join-weight-group": {"master_address": 2, "world_size": 2},
    "receive-weights": {"names": 3, "dtypes": 2, "shapes": 2, "load_format": 2, "last": 2, "abort_all_requests": 2},
    "update-weights": {"model_path": 5, "abort_all_requests": 2, "weight_version": 5},
    "put-weights": {"safetensors": 4, "last": 2, "weight_version": 2},
    "get-weights": {"name": 3},
    "check-weights": {"action": 2},
}
"""Row -> field -> how many values of it are drawn; of a mapping, items. Fields and rows of one value are left out."""


def test_every_field_of_what_is_drawn_takes_all_its_values() -> None:
    found: dict[str, dict[str, int]] = {}
    for row in (row for row in ROWS if row.drawn):
        bodies = [body for seed in range(1000) if (body := row.draw(Seeded(seed))) is not None]
        assert 0 < len(bodies) < 500, row.name
        for name in bodies[0].__struct_fields__:
            values = [getattr(body, name) for body in bodies]
            count = len({part for value in values for part in (value.items() if isinstance(value, dict) else [value])})
            if count > 1:
                found.setdefault(row.name, {})[name] = count
    assert found == DRAWN


FACTS = {"version": "1", "model": "m"}


@pytest.mark.parametrize("row", [row for row in ROWS if row.routes], ids=lambda row: row.name)
def test_what_was_refused_is_shown_as_an_error_in_the_servers_words(row: Row) -> None:
    if row in (STATE,):
        return
    status, shown = row.show(no("these words"), FACTS)
    assert status >= HTTPStatus.BAD_REQUEST
    assert shown["error"]["message"] == "these words"


def test_statuses_say_whose_fault_it_is() -> None:
    assert RELEASE_MEMORY.show(no("x"), FACTS)[0] == HTTPStatus.INTERNAL_SERVER_ERROR
    assert RELEASE_MEMORY.show(no("x", conflict=True), FACTS)[0] == HTTPStatus.CONFLICT
    assert RELEASE_MEMORY.show(no(NOT_WAITING), FACTS)[0] == HTTPStatus.BAD_REQUEST
    assert RELEASE_MEMORY.show(yes(conflict=True, n=1), FACTS) == (
        HTTPStatus.OK,
        {"success": True, "message": "done", "n": 1},
    )
    assert IS_SLEEPING.show(yes(is_sleeping=True, moving=False), FACTS) == (HTTPStatus.OK, {"is_sleeping": True})
    assert CLOSE_SESSION.show(no("x"), FACTS)[0] == HTTPStatus.NOT_FOUND
    assert CLOSE_SESSION.show(yes(), FACTS)[0] == HTTPStatus.OK
    assert OPEN_SESSION.show(yes(session_id="s"), FACTS) == (HTTPStatus.OK, "s")
    assert LOAD_LORA.show(no("x is not loaded"), FACTS)[0] == HTTPStatus.NOT_FOUND
    assert LOAD_LORA.show(no("x"), FACTS)[0] == HTTPStatus.BAD_REQUEST
    assert LOAD_LORA.show(yes(), FACTS) == (HTTPStatus.OK, "done")
    assert LOAD_ADAPTER.show(yes(), FACTS) == (HTTPStatus.OK, {"success": True, "loaded_adapters": {}})
    assert GET_WEIGHTS.show(yes(values=[1.0]), FACTS) == (HTTPStatus.OK, [1.0])
    assert GET_WEIGHTS.show(yes(values=[1.0], name="n"), FACTS) == (HTTPStatus.OK, {"values": [1.0], "name": "n"})
    assert SET_STATE.show(yes(), FACTS) == (HTTPStatus.OK, [True])
    assert STATE.show(no("late"), FACTS) == (
        HTTPStatus.OK,
        {**FACTS, "ranks": [], "internal_states": [{"error": "late"}]},
    )


def load(running: int) -> dict[str, int]:
    return {
        "dp_rank": 0,
        "num_running_reqs": running,
        "num_waiting_reqs": 2,
        "num_total_reqs": running + 2,
        "num_used_tokens": 8,
        "max_total_num_tokens": 64,
    }


def test_loads_of_replicas_are_numbered_in_their_order_and_shown_in_both_forms() -> None:
    merged = LOADS.merge([yes(loads=[load(1)]), yes(), yes(loads=[load(5)])])
    assert merged.ok
    assert [(each["dp_rank"], each["num_running_reqs"]) for each in merged.body["loads"]] == [(0, 1), (1, 5)]
    status, shown = LOADS.show(merged, FACTS)
    assert (status, shown) == (
        HTTPStatus.OK,
        {"version": "1", "dp_rank_count": 2, "loads": [load(1), load(5) | {"dp_rank": 1}]},
    )
    kept = {"num_reqs": 3, "num_waiting_reqs": 2, "num_tokens": 8}
    assert LOAD.show(merged, FACTS)[1] == [{"dp_rank": 0, **kept}, {"dp_rank": 1, **kept, "num_reqs": 7}]
    for row in (LOADS, LOAD):
        assert row.show(no("late"), FACTS)[0] == HTTPStatus.SERVICE_UNAVAILABLE
        assert row.look is LOADS.look
    assert isinstance(LOADS.message(), GetLoads)
    states = [yes(live=[], ranks=[{"rank": 0}, {"rank": 1}]), yes(live=[], ranks=[{"rank": 0}])]
    both = STATE.merge(states)
    assert both.body == {"replicas": [state.body for state in states]}
    assert STATE.show(both, FACTS)[1]["ranks"] == [
        {"replica": 0, "rank": 0},
        {"replica": 0, "rank": 1},
        {"replica": 1, "rank": 0},
    ]
    ranks = CHECK_WEIGHTS.merge([yes(ranks=[1, 2]), yes(ranks=[3]), no("broken")])
    assert (ranks.ok, ranks.message, ranks.body) == (False, "broken", {"ranks": [1, 2, 3]})


def test_counts_of_replicas_are_added_place_by_place_also_where_they_are_equal_and_what_is_no_count_is_not() -> None:
    mine = {"logical_count": [[1, 0], [2, 2]], "num_tokens": 3, "failed_steps": 0, "layers_with_experts": [0, 1]}
    yours = {**mine, "logical_count": [[1, 5], [2, 0]], "failed_steps": 2}
    both = DUMP_EXPERTS.merge([yes(**mine, num_experts_per_token=2), yes(**yours, num_experts_per_token=2)])
    assert both.body == {
        "logical_count": [[2, 5], [4, 2]],
        "num_tokens": 6,
        "failed_steps": 2,
        "layers_with_experts": [0, 1],
        "num_experts_per_token": 2,
    }
    moved = REBALANCE_EXPERTS.merge([yes(moved_experts=3, layers=1, imbalance_after=1.5)] * 2)
    assert moved.body == {"moved_experts": 6, "layers": 2, "imbalance_after": 1.5}


class Asked:
    """A gateway that keeps what it was asked to ask, and answers."""

    def __init__(self) -> None:
        self.orders: list[Any] = []

    def ask(self, order: Any, answer: Callable[[Reply], None], patience_s: float) -> None:
        self.orders.append(order)
        answer(yes(loaded_adapters={}))


def test_vllms_words_for_adapters_are_orders_and_so_are_the_answers() -> None:
    gateway, said = Asked(), list[Reply]()
    assert LOAD_LORA.at_gateway is not None
    LOAD_LORA.at_gateway(gateway, LoadLora(lora_name="x", lora_path="p"), said.append)  # type: ignore[arg-type]
    unload = next(row for row in ROWS if row.body is UnloadLora)
    assert unload.at_gateway is not None
    unload.at_gateway(gateway, UnloadLora(lora_name="x"), said.append)  # type: ignore[arg-type]
    assert [reply.message for reply in said] == [
        "Success: LoRA adapter 'x' added successfully.",
        "Success: LoRA adapter 'x' removed successfully.",
    ]
    assert [getattr(order, "name", None) for order in gateway.orders] == ["x", "x"]
    assert (gateway.orders[0].path, gateway.orders[0].pinned) == ("p", False)


@pytest.mark.parametrize(
    ("body", "is_sent"),
    [
        ({"safetensors": b"x"}, True),
        ({"shared_memory": "m", "size": 8}, True),
        ({"shared_memory": "m"}, False),
        ({"size": 8}, False),
        ({"safetensors": b"x", "size": 8}, False),
        ({"safetensors": b"x", "shared_memory": "m", "size": 8}, False),
        ({}, False),
        ({"safetensors": b"x", "serialized_named_tensors": "p"}, False),
    ],
    ids=str,
)
def test_weights_come_in_one_way_and_as_a_whole(body: dict[str, Any], is_sent: bool) -> None:
    gateway, said = Asked(), list[Reply]()
    send(gateway, SendWeights(**body), said.append)  # type: ignore[arg-type]
    assert len(gateway.orders) == is_sent
    assert [reply.ok for reply in said] == [is_sent]


SHARES = {
    "load-adapter": [28, 10, 3, 25],
    "unload-adapter": [58, 18],
    "flush-cache": [310, 146],
    "start-expert-record": [167],
    "stop-expert-record": [110],
    "dump-expert-record": [222],
    "rebalance-experts": [222],
    "set-state": [222, 7],
    "slow-down": [167, 58],
    "release-memory": [167, 34, 75],
    "resume-memory": [71, 18],
    "sleep (vLLM)": [71, 37],
    "start-profile": [130, 90, 35, 97, 75],
    "stop-profile": [110],
    "abort": [58],
    "scale-replicas": [222, 44, 64, 67],
    "pause": [130, 53],
    "continue": [28],
    "pause (vLLM)": [95, 48, 33],
    "open-session": [28, 10, 24, 16],
    "close-session": [28],
    "state": [110],
    "join-weight-group": [310, 30, 30],
    "receive-weights": [272, 149, 207, 207, 150, 65, 211],
    "leave-weight-group": [110],
    "update-weights": [310, 65, 248, 54],
    "put-weights": [222, 55, 96, 100],
    "get-weights": [110, 30],
    "check-weights": [58, 29],
}
"""Row -> how many of a thousand seeds draw it, and of each field of several values how often the first by name."""


def shares(row: Row) -> list[int]:
    bodies = [body for seed in range(1000) if (body := row.draw(Seeded(seed))) is not None]
    counts = [Counter(repr(getattr(body, name)) for body in bodies) for name in bodies[0].__struct_fields__]
    return [len(bodies), *(count[min(count)] for count in counts if len(count) > 1)]


def test_each_value_is_drawn_as_often_as_before() -> None:
    assert {row.name: shares(row) for row in ROWS if row.drawn} == SHARES
