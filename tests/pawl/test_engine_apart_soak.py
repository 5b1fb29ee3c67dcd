"""Prefill and decode apart under a hundred clients, while a random side is killed every ten seconds."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pawl.build.replica_process import ReplicaProcess
from pawl.cli import main
from pawl.engine import Engine
from pawl.lifecycle.audit import Verdict, audit
from tests.actors.linked_systems import wait_for
from tests.pawl.test_engine_apart_processes import apart, config, kill, linked

CLIENTS, SECONDS, EVERY_S = 100, 120.0, 10.0
PROMPTS = [
    f"{number} asks: " + "what is worth the way from one side to the other? " * (number % 8 + 1) for number in range(64)
]
SAMPLING: dict[str, Any] = {"max_new_tokens": 48, "temperature": 0.0}


class Crowd:
    """Clients in threads of their own. Each asks again and again, and compares."""

    def __init__(self, engine: Engine, expected: list[str]) -> None:
        self.wrong: list[str] = []
        self.answers: Counter[int] = Counter()
        self._engine = engine
        self._expected = expected
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        chosen = random.Random(number)
        while not self._over.is_set():
            prompt = chosen.randrange(len(PROMPTS))
            try:
                said = "".join(delta.text for delta in self._engine.stream(PROMPTS[prompt], SAMPLING))
            except Exception as error:
                said = repr(error)
            self.answers[number] += 1
            if said != self._expected[prompt]:
                self.wrong.append(f"client {number}: {said!r} and not {self._expected[prompt]!r}")

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def kill_some(engine: Engine, seconds: float) -> list[str]:
    """Kill a replica of any role every few seconds, where one is there; their roles."""
    chosen, killed, never, until = random.Random(5), [], threading.Event(), time.monotonic() + seconds
    while time.monotonic() < until:
        never.wait(EVERY_S)
        there = [replica for replica in engine.replicas.live() if isinstance(replica, ReplicaProcess)]
        if there:
            replica = chosen.choice(there)
            os.kill(replica.ready.pid, signal.SIGKILL)
            killed.append(replica.names.role)
    return killed


def states(engine: Engine) -> list[dict[str, Any]]:
    """What each replica says of itself."""
    told: list[dict[str, Any]] = engine.control("state")["replicas"]
    return told


def rests(state: dict[str, Any]) -> bool:
    """Whether nothing is held, waits, or is under way in a replica."""
    pages, slots, prefill = state["pages"], state["slots"], state.get("prefill", {})
    return (
        not state["requests"]
        and not any((state["waiting"], state["running"], state["in_flight"], state["cache"]["held"]))
        and not any((pages["owned"], pages["deferred"], state["tiers"].get("hand_overs")))
        and not any((state["tiers"].get("hand_over_pages"), prefill.get("receiving"), prefill.get("reserving")))
        and slots["free"] == slots["total"]
    )


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_and_nothing_is_left_whichever_side_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Engine(config(tmp_path / "alone")) as engine:
        expected = [completion.text for completion in engine.generate(PROMPTS, SAMPLING)]
    with apart(tmp_path / "apart", max_running=256, max_queued=4096) as engine:
        crowd = Crowd(engine, expected)
        killed = kill_some(engine, SECONDS)
        crowd.end()
        for role in ("prefill", "decode"):  # the last two replicas have met nobody else
            wait_for(partial(linked, engine, 1, 1, restarts=len(killed)))
            kill(engine, role)
            killed.append(role)
        wait_for(lambda: linked(engine, 1, 1, restarts=len(killed)))
        said = [completion.text for completion in engine.generate(PROMPTS, SAMPLING)]
        wait_for(lambda: all(map(rests, states(engine))))
        left, live = states(engine), engine.replicas.live()
    told = {key: [state.get(group, {}).get(key) for state in left] for group, key in SEEN}
    with capsys.disabled():
        print(f"\n{CLIENTS} clients, {crowd.answers.total()} answers, killed {Counter(killed)}, {told}")
    assert crowd.wrong == []
    assert said == expected
    assert len(crowd.answers) == CLIENTS
    assert {"prefill", "decode"} <= set(killed)
    judged(tmp_path / "apart", killed)
    last = [sorted((tmp_path / "apart" / f"replica-{place}").glob("run-*"))[-1] for place in (0, 1)]
    assert len(live) == 2
    assert main(["audit", *map(str, last)]) == 0
    assert "hand-overs: " in capsys.readouterr().out


SEEN = (
    *(("prefill", f"prefills_{name}") for name in ("received", "short", "overdue", "lost")),
    *(("tiers", name) for name in ("sent_pages", "shared_pages", "refused_pages")),
)


def judged(folder: Path, killed: list[str]) -> None:
    """Every run passes, or has no end as it was killed; none has done wrong."""
    runs = sorted(folder.glob("replica-*/run-*"))
    verdicts = Counter(audit(run).verdict for run in runs)
    assert set(verdicts) <= {Verdict.PASS, Verdict.INCOMPLETE}
    assert verdicts[Verdict.PASS] >= 2
    assert len(runs) == len(killed) + 2
