"""A stranger's part or scheduler that no exception ends, or that ends its process: the exploration is not lost with it,
and says which call it was."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from pawl.cli import main
from pawl.exploration import watched

PARTS = """\
import itertools
import os
import signal
import threading

from pawl.actors.scheduler import Scheduler
from pawl.memory.prefix.radix import RadixCache
from pawl.testing.subject import Output, Segment, Step, Subject


class Counts:
    name = "mine"

    def order(self, rows, waiting):
        return sum(itertools.repeat(1))  # in C: no signal is handled there


class Deafens:
    name = "mine"

    def order(self, rows, waiting):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF, signal.SIGALRM, signal.SIGTERM])
        threading.Event().wait()


class Presses:
    name = "mine"

    def order(self, rows, waiting):
        raise KeyboardInterrupt


class Ends(RadixCache):
    def match_and_hold(self, tokens, namespace, priority=0):
        os._exit(0)


class Waits(Scheduler):
    def settled(self):
        threading.Event().wait()


class Spins(Scheduler):
    def receive(self, message):
        while True:
            pass


class Leaves(Scheduler):
    def receive(self, message):
        raise SystemExit(3)


class Alone(Subject):
    what = "schedule"

    def __init__(self, settings):
        self.requests = []

    def submit(self, request):
        self.requests.append(request)

    def abort(self, number):
        self.requests = [each for each in self.requests if each.number != number]

    def schedule(self):
        return self.does()

    def apply(self, step, tokens):
        return []


class AloneCounts(Alone):
    def does(self):
        return sum(itertools.repeat(1))


class AloneEnds(Alone):
    def does(self):
        os._exit(0)


class Closes:
    name = "mine"

    def order(self, rows, waiting):
        os.closerange(3, 256)
        return rows


class ClosesBehind(RadixCache):
    def evict(self, count):
        os.closerange(0, 256)
        return super().evict(count)


class AloneCloses(Alone):
    def does(self):
        os.closerange(3, 256)


class AlonePresses(Alone):
    def does(self):
        raise KeyboardInterrupt
"""
NOT_SAVED = "not saved: the process that explored was lost with it"


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watched, "PATIENCE_S", 1.0)
    file = tmp_path / "parts.py"
    file.write_text(PARTS)
    return file


def explored(flag: str, part: str, *words: str) -> int:
    fixed = ("--seed", "1", "--seconds", "600", "--shrink-seconds", "0", "--schedules", "40")
    return main(["explore", f"--{flag}", part, *fixed, *words])


@pytest.mark.parametrize(
    ("flag", "name", "told", "where"),
    [
        ("policy", "Counts", r"your policy .*:Counts \(order, parts.py:14\) does not return", "line 15 in order"),
        ("policy", "Deafens", r"your policy .*:Deafens \(order, parts.py:21\) does not return", ""),
        ("cache", "Ends", r"your cache .*:Ends \(match_and_hold, parts.py:34\) ended the process, with status 0", ""),
        (
            "scheduler",
            "Waits",
            r"your scheduler .*:Waits \(settled, parts.py:39\) does not return",
            "line 40 in settled",
        ),
        ("subject", "AloneCounts", "returns: schedule does not return", "line 75 in does"),
        ("subject", "AloneEnds", "raises_nothing: schedule ended the process, with status 0", ""),
        ("policy", "Closes", r"your policy .*:Closes \(order, parts.py:86\) closed files that are not its own", ""),
        ("cache", "ClosesBehind", r"your cache .*:ClosesBehind \(evict, parts.py:92\) closed files .*", ""),
        ("subject", "AloneCloses", "raises_nothing: schedule closed files that are not its own", ""),
    ],
)
def test_a_call_with_which_the_process_is_lost_is_named(
    flag: str, name: str, told: str, where: str, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explored(flag, f"{parts}:{name}") == 1
    said = capsys.readouterr()
    assert re.search(f"found: .*{told}$", said.err, re.MULTILINE)
    assert re.search(f"^(PartFailed: )?{told}$", said.out, re.MULTILINE)
    assert where in said.out
    assert re.search(r"^  request( 1)?: prompt=", said.out, re.MULTILINE), "what the run was made of"
    assert "violations: 1" in said.out
    assert NOT_SAVED in said.out
    assert not list(parts.parent.glob("schedule*.json"))


@pytest.mark.parametrize(
    ("flag", "name", "told"),
    [
        ("policy", "Presses", r"your policy .*:Presses \(order, parts.py:29\) raised KeyboardInterrupt"),
        ("scheduler", "Spins", r"your scheduler .*:Spins \(receive, parts.py:44\) does not return"),
        ("scheduler", "Leaves", r"your scheduler .*:Leaves \(receive, parts.py:50\) raised SystemExit"),
        ("subject", "AlonePresses", "raises_nothing: schedule raised KeyboardInterrupt"),
    ],
)
def test_what_an_exception_ends_or_is_one_leaves_a_counterexample(
    flag: str, name: str, told: str, parts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watched, "PATIENCE_S", 600.0)
    assert explored(flag, f"{parts}:{name}") == 1
    assert re.search(f"found, and saved to .*{told}", capsys.readouterr().err)
    (saved,) = parts.parent.glob("schedule*.json")
    if "Presses" not in name:  # a replay has nobody who watches it, and is ended as by a key
        assert main(["replay", str(saved)]) == 0


def test_what_is_lost_with_the_process_comes_in_fewer_requests(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--shrink-seconds", "600", "--max-requests", "9", "--json")
    assert explored("subject", f"{parts}:AloneEnds", *words) == 1
    (told,) = json.loads(capsys.readouterr().out)["counterexamples"].values()
    assert told.count("\n  request") - told.count("is submitted") == 1


def test_a_process_that_takes_its_time_to_end_has_closed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, let_go = os.pipe()
    here = os.getpid()

    class Slow:
        def flush(self) -> None:
            if os.getpid() != here:
                os.read(goes_on, 1)

    with monkeypatch.context() as forked:
        forked.setattr(sys, "stderr", Slow())
        process = watched.Watched(lambda tell: tell({"refused": "why"}))
    assert [process.read(), process.read()] == [{"refused": "why"}, None]
    join = process._process.join

    def patient(seconds: float) -> None:
        if seconds > watched.GRACE_S:
            os.write(let_go, b".")
        join(seconds)

    monkeypatch.setattr(process._process, "join", patient)
    process.said_no_more()
    assert (process.lost, process._process.exitcode) == ("", 0)
    monkeypatch.undo()
    assert process.end() == 0
    os.close(goes_on)
    os.close(let_go)
