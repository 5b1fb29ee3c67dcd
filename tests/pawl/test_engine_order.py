"""The actors of an engine together: what comes in which order, also where one of them is slow."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from pawl.actors.gateway import Gateway
from pawl.actors.messages.generate import Submit
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.runtime.mailbox import BURST
from pawl.actors.sink import Inbox
from pawl.build.ghost import load_ghost
from pawl.build.wiring import engine_actors, spawn_all, stop_order
from pawl.config import build_config
from pawl.engine import Engine, RequestFailed
from pawl.lifecycle.audit import Verdict, audit
from pawl.lifecycle.records import STOPPED, Answered, AnswersClosed, Closed
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause
from pawl.lifecycle.trace.reader import TraceReader

PATIENCE_S = 60.0
STOP_S = 2.0


def test_no_end_overtakes_the_news_that_its_request_was_taken(tmp_path: Path) -> None:
    """A gateway that is slow finds everything at once: more messages than the higher lanes may take in a row."""
    parts = load_ghost(build_config({"model": "ghost", "trace_dir": str(tmp_path)}))
    gateway, system = Gateway(), LocalSystem()
    specs = engine_actors(parts, gateway, 600.0)
    spawn_all(system, specs)
    cells = {spec.name: system.find(spec.name) for spec in specs}
    for cell in cells.values():
        assert cell is not None
        cell.begin()
    submit = Submit(request=0, rid="", text="words", sampling=SamplingParameters(max_new_tokens=1))
    inboxes = [Inbox() for _ in range(3 * BURST)]
    gateway.submit([submit] * len(inboxes), inboxes)
    for name, cell in cells.items():
        while name != "gateway" and cell is not None and cell.step():
            pass
    for _ in range(4):
        for name in ("worker", "scheduler", "detokenizer"):
            while (cell := cells[name]) is not None and cell.step():
                pass
    assert not any(inbox.final for inbox in inboxes)
    while (cell := cells["gateway"]) is not None and cell.step():
        pass
    assert all(inbox.done is not None and inbox.num_prompt is not None for inbox in inboxes)
    assert not gateway.totals.violations


def test_a_short_prompt_is_answered_while_a_long_one_is_read_whose_abort_is_kept(tmp_path: Path) -> None:
    parts = load_ghost(build_config({"model": "ghost", "trace_dir": str(tmp_path)}))
    gateway, system = Gateway(traced=True, short=100), LocalSystem()
    specs = engine_actors(parts, gateway, 600.0)
    spawn_all(system, specs)
    cells = {spec.name: found for spec in specs if (found := system.find(spec.name)) is not None}
    for cell in cells.values():
        cell.begin()

    def work(*resting: str) -> None:
        for _ in range(8):
            for name, cell in cells.items():
                while name not in resting and cell.step():
                    pass

    limited = SamplingParameters(max_new_tokens=2)
    long, short, late = Inbox(), Inbox(), Inbox()
    (unread,) = gateway.submit([Submit(request=0, rid="", text="words " * 50, sampling=limited)], [long])
    gateway.submit([Submit(request=0, rid="", text="words", sampling=limited)], [short])
    work("long_tokenizer")
    assert short.done is not None
    assert short.done.cause is Cause.LENGTH
    gateway.abort([unread])
    gateway.submit([Submit(request=0, rid="", text="words", sampling=limited)], [late])
    work("long_tokenizer")
    assert not long.final
    work()
    assert long.done is not None
    assert late.done is not None
    assert [long.done.cause, late.done.cause] == [Cause.CLIENT, Cause.LENGTH]
    for name in stop_order(specs):
        cells[name].ask_to_stop("stopped")
        work()
    assert audit(tmp_path).verdict == Verdict.PASS


class Slow:
    """A runner whose next step takes as long as the test wants."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.inside, self.go_on = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def launch(self, batch: Any) -> Any:
        self.inside.set()
        assert self.go_on.wait(PATIENCE_S)
        return self._runner.launch(batch)


def refused_at_the_stop(engine: Engine) -> None:
    with pytest.raises(RequestFailed):
        engine.generate("words", {"max_new_tokens": 8})


def test_a_step_longer_than_the_stop_costs_the_trace_nothing(tmp_path: Path) -> None:
    config = build_config({"model": "ghost", "trace_dir": str(tmp_path)})
    parts = load_ghost(config)
    slow = Slow(parts.runner)
    object.__setattr__(parts, "runner", slow)
    engine = Engine(config, parts=parts).start()
    client = threading.Thread(target=refused_at_the_stop, args=(engine,))
    client.start()
    assert slow.inside.wait(PATIENCE_S)
    engine.stop(STOP_S)
    slow.go_on.set()
    client.join(PATIENCE_S)
    records = list(TraceReader(tmp_path))
    assert [record.reason for record in records if isinstance(record, Closed)] == [STOPPED]
    assert sum(isinstance(record, Answered) for record in records) == 1
    assert isinstance(records[-1], AnswersClosed)
    assert audit(tmp_path).verdict == Verdict.PASS
