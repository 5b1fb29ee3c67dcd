"""Replicas that are added, and leave, while streams run, as threads and as processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pawl.build.replicas import places_of, share_of
from pawl.config import ConfigError, ServerConfig, build_config
from pawl.engine import Engine, RequestFailed
from pawl.lifecycle.audit import Verdict, audit
from pawl.lifecycle.records import Submitted
from pawl.lifecycle.trace.reader import TraceReader

PROMPTS = [f"stream number {number} goes on" for number in range(6)]
SAMPLING: dict[str, Any] = {"max_new_tokens": 150, "temperature": 1.0, "ignore_eos": True}


def config(folder: Path, **settings: Any) -> ServerConfig:
    return build_config({"model": "ghost", "seed": 5, "trace_dir": str(folder), "log_level": "error", **settings})


def texts(engine: Engine, half_way: Callable[[], object] = lambda: None) -> list[str]:
    """What clients of all prompts get; `half_way` is called when each has had something."""
    made = [engine.stream(prompt, SAMPLING | {"seed": number}) for number, prompt in enumerate(PROMPTS)]
    begun = [next(stream).text for stream in made]
    half_way()
    return [first + "".join(delta.text for delta in rest) for first, rest in zip(begun, made, strict=True)]


def scale(engine: Engine, replicas: int, **fields: Any) -> None:
    """Wait until so many serve, and no other one is there."""
    engine.control("scale-replicas", replicas=replicas, **fields)
    while len(engine.replicas.live()) != replicas or len(states(engine)) != replicas:
        pass


def states(engine: Engine) -> Sequence[dict[str, Any]]:
    """Of each replica that serves."""
    found: Sequence[dict[str, Any]] = engine.control("state")["replicas"]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What clients of one replica get."""
    with Engine(config(tmp_path_factory.mktemp("one"))) as engine:
        return texts(engine)


@pytest.mark.parametrize("runtime", ["local", pytest.param("processes", marks=pytest.mark.slow)])
def test_streams_are_those_of_one_replica_while_others_come_and_leave(
    tmp_path: Path, runtime: str, undisturbed: list[str]
) -> None:
    with Engine(config(tmp_path, runtime=runtime, max_dp=2, scale_at=10_000)) as engine:
        engine.control("set-state", server_args={"max_running": 7})
        assert texts(engine, lambda: scale(engine, 2, on_load=False)) == undisturbed
        homes = engine.replicas.homes()
        assert [(each["replica"], each["node"], each["address"]) for each in homes] == [
            (0, "front", None),
            (1, "front", None),
        ]
        assert (len({os.getpid(), *(each["pid"] for each in homes)}) == 3) == (runtime == "processes")
        assert [state["max_running"] for state in states(engine)] == [7, 7]
        # It has half of the requests, which go on in the first one.
        assert texts(engine, lambda: scale(engine, 1, grace_s=0)) == undisturbed
        scale(engine, 2)
        # It leaves when the requests that it has have ended there.
        assert texts(engine, lambda: engine.control("scale-replicas", replicas=1)) == undisturbed
        scale(engine, 1)
        assert engine.failure is None
    verdicts = sorted(audit(run).verdict for run in tmp_path.glob("replica-*/run-*"))
    # Of the second of three, others have answered clients.
    assert verdicts == [Verdict.PASS, Verdict.PASS, Verdict.INCOMPLETE]


def test_what_a_replica_that_left_had_is_found_in_the_trace_of_another_with_its_first_tokens(tmp_path: Path) -> None:
    with Engine(config(tmp_path, dp=1, max_dp=2)) as engine:
        scale(engine, 2, on_load=False)
        endless = [engine.stream(prompt, SAMPLING | {"max_new_tokens": 30_000}) for prompt in PROMPTS]
        for stream in endless:
            next(stream)
        scale(engine, 1, grace_s=0)
        for stream in endless:
            stream.close()
    runs = [TraceReader(tmp_path / f"replica-{place}" / "run-000001") for place in range(2)]
    left, stayed = sorted(([each.request for each in run if isinstance(each, Submitted)] for run in runs), key=len)
    assert len(left) == 3
    assert {*left} <= {*stayed}


def test_numbers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with Engine(config(tmp_path)) as engine, pytest.raises(RequestFailed, match="--max-dp makes room for more"):
        engine.control("scale-replicas", replicas=2)
    with Engine(config(tmp_path, dp=2)) as engine, pytest.raises(RequestFailed, match=r"2 to 2.*--max-dp makes room"):
        engine.control("scale-replicas", replicas=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dp": 3, "max_dp": 2}, "max_dp: at least dp, which is 3, not 2"),
        ({"disaggregate": "1p1d", "max_dp": 4}, "max_dp: 1p1d says how many replicas there are"),
        ({"max_dp": 4, "nodes": 2, "listen": "tcp://127.0.0.1:0", "keys": "k"}, "dp: at least one replica for each of"),
        ({"dp": 2, "max_dp": 3, "nodes": 2, "listen": "tcp://127.0.0.1:0", "keys": "k"}, "and max_dp is 3"),
        ({"max_dp": 64, "max_running": 32}, "max_running: 32 is less than 1 for each of 64 replicas"),
    ],
)
def test_room_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    made = build_config({"model": "ghost", **settings})
    with pytest.raises(ConfigError, match=message):
        share_of(made, places_of(made)[0])


def test_replicas_share_what_there_is_among_as_many_as_there_may_be_and_nodes_get_one_each_first() -> None:
    made = build_config({"model": "ghost", "max_dp": 4, "kv_tokens": 4096, "max_running": 40})
    share = share_of(made, places_of(made)[0])
    assert (share.kv_tokens, share.max_running) == (1024, 10)
    hosts = {"nodes": 2, "listen": "tcp://127.0.0.1:0", "keys": "k"}
    assert places_of(build_config({"model": "ghost", "dp": 2, "max_dp": 6, **hosts})) == [0, 3, 1, 4, 2, 5]
