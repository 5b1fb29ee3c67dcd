"""The engine offline: its prompts, and its life from start to stop."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pawl.actors.text.ghost import ghost_vocabulary
from pawl.config import ServerConfig
from pawl.engine import Engine, NotRunning, RequestFailed
from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.states import Cause

ROOT = Path(__file__).parent.parent.parent
VOCABULARY = ghost_vocabulary()
THREE = {"max_new_tokens": 3, "temperature": 0.0}
PATIENCE_S = 120.0
"""A process that hangs is given up after so long."""
MAKE = """
import os, sys
from pawl.config import ServerConfig
from pawl.engine import Engine, NotRunning
engine = Engine(ServerConfig(model="ghost", trace=False))
engine.start()
assert engine.generate("before", {"max_new_tokens": 2})[0].tokens
"""


def new_engine() -> Engine:
    return Engine(ServerConfig(model="ghost", trace=False))


@pytest.fixture
def engine() -> Iterator[Engine]:
    with new_engine() as engine:
        yield engine


def said(prompt: str) -> str:
    return VOCABULARY.decode(expected(VOCABULARY.encode(prompt).tolist(), 3))


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAKE + program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("sampling", "stop", "words"),
    [
        ({"temperature": -1}, (), "temperature must be a number from 0"),
        ({"nonsense": 1}, (), "unknown field 'nonsense'"),
        ({"max_new_tokens": 1 << 70}, (), "max_new_tokens must be an integer from 0 to 2147483647"),
        ({"logit_bias": {"x": 1}}, (), "each key of logit_bias must be an integer"),
        ({}, ("",), "must be a string of 1 to 1024 characters"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(engine: Engine, sampling: Any, stop: Any, words: str) -> None:
    with pytest.raises(RequestFailed, match=words) as failed:
        engine.generate("text", sampling, stop=stop)
    assert failed.value.cause is Cause.INVALID
    assert engine.generate("text", THREE)[0].text == said("text")


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("text", said("text")), ([116, 101, 120, 116], said("text"))],
    ids=["text", "token ids"],
)
def test_a_prompt_that_stands_alone_is_one_prompt(engine: Engine, prompt: Any, answer: str) -> None:
    assert [completion.text for completion in engine.generate(prompt, THREE)] == [answer]


def test_a_chat_that_stands_alone_is_one_prompt(engine: Engine) -> None:
    chat = [{"role": "user", "content": "hello"}]
    (alone,), (in_a_list,) = engine.generate(chat, THREE), engine.generate([chat], THREE)
    assert alone.text == in_a_list.text


def test_prompts_in_a_sequence_are_answered_in_their_order(engine: Engine) -> None:
    answers = engine.generate(("one", [116, 119, 111]), THREE)
    assert [completion.text for completion in answers] == [said("one"), said("two")]


def test_a_stop_string_that_stands_alone_is_one_stop_string(engine: Engine) -> None:
    (whole,) = engine.generate("text", {"max_new_tokens": 12, "temperature": 0.0})
    stop = whole.text[2:4]
    (stopped,) = engine.generate("text", {"max_new_tokens": 12, "temperature": 0.0}, stop=stop)
    assert (stopped.done.cause, stopped.done.matched) == (Cause.STOP_STRING, stop)


def test_an_orderly_stop_leaves_no_dead_letter() -> None:
    with new_engine() as engine:
        engine.generate(["one", "two"], THREE)
    assert engine.system.dead_letters.recent() == ()


def test_a_process_that_never_stops_its_engine_ends_and_the_engine_is_stopped_in_order() -> None:
    done = run(
        "import atexit; atexit.register(lambda: print('ended'))\nengine.gateway.stopped = lambda reason: print(reason)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["ended", "stopped"]


def test_a_program_that_fails_with_a_running_engine_ends_with_its_error() -> None:
    done = run("raise KeyError('mine')")
    assert done.returncode == 1
    assert "KeyError: 'mine'" in done.stderr


def test_in_a_forked_child_the_engine_says_that_it_does_not_run_there() -> None:
    done = run(
        """
sys.stdout.flush()
child = os.fork()
if child == 0:
    try:
        engine.generate("in the child")
    except NotRunning as error:
        print(error, flush=True)
    engine.stop()
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(engine.generate("after", {"max_new_tokens": 2})))
engine.stop()
"""
    )
    assert done.returncode == 0, done.stderr
    error, parent = done.stdout.splitlines()
    assert "forked" in error
    assert parent == "7 1"


def test_an_engine_that_was_stopped_says_so() -> None:
    with new_engine() as engine:
        pass
    with pytest.raises(NotRunning, match="was stopped"):
        engine.generate("late")
    with pytest.raises(NotRunning, match="make another one"), engine:
        pass
    engine.stop()


def test_an_engine_that_was_not_started_says_so() -> None:
    with pytest.raises(NotRunning, match="not started"):
        new_engine().generate("early")


def test_an_engine_is_started_once(engine: Engine) -> None:
    with pytest.raises(NotRunning, match="started before"):
        engine.start()
