"""Two replicas of one model in one engine: what is shared out, and streams that live on when their replica is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pawl.build.replicas import share_of
from pawl.cli import main
from pawl.config import ConfigError, ServerConfig, build_config
from pawl.engine import Engine, RequestFailed
from pawl.lifecycle.records import Submitted, int32s
from pawl.lifecycle.trace.reader import TraceReader
from tests.lifecycle.story import write

PROMPTS = [f"stream number {number} goes on" for number in range(6)]
SAMPLING: dict[str, Any] = {"max_new_tokens": 200, "temperature": 1.0, "ignore_eos": True}


def config(folder: Path, **settings: Any) -> ServerConfig:
    return build_config({"model": "ghost", "trace_dir": str(folder), "log_level": "error", **settings})


def samplings() -> Iterator[dict[str, Any]]:
    """Of each prompt its own seed; some with scores, penalties and stop strings that never come."""
    for number in range(len(PROMPTS)):
        more = [{}, {"top_logprobs": 2}, {"frequency_penalty": 0.5}][number % 3]
        yield SAMPLING | {"seed": 1000 + number} | more


def streamed(engine: Engine, half_way: threading.Barrier | None = None) -> list[tuple[str, tuple[int, ...], Any]]:
    """What a client of each prompt gets, all at the same time. All meet at `half_way`, after their first tokens."""
    found: list[Any] = [None] * len(PROMPTS)

    def read(number: int, sampling: dict[str, Any]) -> None:
        text, tokens, waits, last = "", (), half_way, None
        for delta in engine.stream(PROMPTS[number], sampling):
            text, tokens, last = text + delta.text, tokens + delta.tokens, delta.done
            if waits is not None and tokens:
                waits.wait(60)
                waits = None
        assert last is not None
        found[number] = text, tokens, last.usage.completion_tokens

    threads = [threading.Thread(target=read, args=each) for each in enumerate(samplings())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def kill(engine: Engine, name: str) -> None:
    """Its next message fails the actor."""

    class Unlucky(Exception):
        """The failure of an actor that was chosen to fail."""

    cell = engine.system.find(name)
    assert cell is not None
    actor: Any = cell._actor

    def fail(*_: Any) -> None:
        raise Unlucky

    actor.spares = lambda message, error: False
    actor.receive = fail


def test_streams_of_a_lost_replica_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    with Engine(config(tmp_path / "calm")) as engine:
        undisturbed = streamed(engine)
    half_way = threading.Barrier(len(PROMPTS), action=lambda: kill(disturbed, "scheduler.0"))
    with Engine(config(tmp_path / "lost", dp=2)) as disturbed:
        assert streamed(disturbed, half_way) == undisturbed
        states = disturbed.control("state")["replicas"]
        alive = {name for name, each in disturbed.system.statistics().items() if each.alive}
    assert "scheduler.0" not in alive
    # Those of the lost replica end elsewhere; of the others some may have been first.
    assert sum(state["counters"]["finished"] for state in states) == len(PROMPTS)
    assert disturbed.failure is None


def test_what_a_lost_replica_had_goes_on_in_others_whose_traces_are_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half_way = threading.Barrier(len(PROMPTS), action=lambda: kill(engine, "worker.1"))
    with Engine(config(tmp_path, dp=2)) as engine:
        streamed(engine, half_way)
    (whole,) = (tmp_path / "replica-0").iterdir()
    assert main(["audit", str(whole)]) == 0
    records = list(TraceReader(whole))
    resumed = [record for record in records if isinstance(record, Submitted) and record.num_retractions]
    assert resumed
    capsys.readouterr()
    assert main(["audit", str(tmp_path)]) in (0, 2)  # another one may have been started in its place by then, or not
    assert f"requests that several of these had: {len(resumed)}\n" in capsys.readouterr().out
    record, last = resumed[0], int32s(resumed[0].output)[-1:]
    forged = msgspec.structs.replace(record, output=record.output[:-4] + (last ^ 1).tobytes())
    write(tmp_path / "forged", [forged if each is record else each for each in records])
    main(["audit", str(tmp_path / "replica-1" / "run-000001"), str(tmp_path / "forged")])
    said = f"request {record.request} came to a replica with an output that is not what the one before it had recorded"
    assert f"violated: {said}" in capsys.readouterr().out


@pytest.fixture
def no_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pawl.build.replicas.MAX_RESTARTS", 0)


@pytest.mark.usefixtures("no_restarts")
def test_when_replicas_are_lost_too_often_everybody_is_told_why(tmp_path: Path) -> None:
    failed: list[str] = []

    def both() -> None:
        for name in ("scheduler.0", "scheduler.1"):
            kill(engine, name)

    half_way = threading.Barrier(1, action=both)
    with Engine(config(tmp_path, dp=2), on_failure=lambda name, error: failed.append(f"{name}: {error}")) as engine:
        stream = engine.stream(PROMPTS[0], SAMPLING | {"seed": 1})
        next(stream)
        half_way.wait()
        with pytest.raises(RequestFailed, match=r"scheduler\.\d is gone: failed: Unlucky"):
            list(stream)
        assert engine.gateway.lost is not None
    assert [text.partition(" ")[0] for text in failed] == ["router:"]


def test_memory_requests_and_cores_are_shared_out_and_nothing_is_no_share() -> None:
    whole = build_config({"model": "smollm2", "dp": 2, "threads": 3, "kv_tokens": 1000, "max_running": 9})
    share = share_of(whole, 1)
    assert (share.threads, share.kv_tokens, share.max_running) == (1, 500, 4)
    assert Path(share.trace_dir).name == "replica-1"
    for settings, text in (
        ({"threads": 1}, "2 replicas need a thread each, and there are 1"),
        ({"kv_tokens": 31}, "kv_tokens: 31 is less than 16 for each of 2 replicas"),
        ({"max_running": 1}, "max_running: 1 is less than 1 for each of 2 replicas"),
    ):
        with pytest.raises(ConfigError, match=text):
            share_of(build_config({"model": "smollm2", "dp": 2, "threads": 2, "page_size": 16, **settings}), 0)
