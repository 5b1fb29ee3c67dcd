"""`pawl top` on a real pseudo-terminal, with real keys, watching a real server."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pawl.build.ghost import load_ghost
from pawl.cli import EXIT_INTERRUPTED, main
from pawl.config import build_config
from tests.pawl.fake_engine import Served
from tests.pawl.ghost_server import ghost_server
from tests.pawl.watching import Screen

PATIENCE_S = 600.0
HOSTILE = "mine\x1b[2J\x1b]0;owned\x07\u202e"
ON_TERMINAL = """
import os, sys
terminal = os.open(sys.argv[1], os.O_RDWR)
for number in range(3):
    os.dup2(terminal, number)
os.execv(sys.executable, [sys.executable, "-m", "pawl.cli", "top", *sys.argv[2:]])
"""
"""The first terminal that the leader of a session opens is the one that controls it."""


class Watching:
    """`pawl top` in a terminal of its own."""

    def __init__(self, *words: str, width: int = 100, height: int = 30, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        self.screen = Screen(width, height)
        self.resize(width, height)
        self.modes = termios.tcgetattr(theirs)
        self._theirs = theirs
        told = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        command = [sys.executable, "-c", ON_TERMINAL, os.ttyname(theirs), *words]
        settings = {"TERM": "xterm-256color", **environment}
        self._addressed = settings["TERM"] != "dumb"
        self.process = subprocess.Popen(command, start_new_session=True, env=told | settings)
        self.written = b""

    def resize(self, width: int, height: int) -> None:
        """The window has another size; what is on it is drawn anew."""
        modes = self.screen.modes
        self.screen = Screen(width, height)
        self.screen.modes = modes
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def until(self, condition: Callable[[str], bool]) -> str:
        """Wait until what is on the screen is so."""
        while not condition(self.screen.text()):
            ready, _, _ = select.select([self._ours], [], [], PATIENCE_S)
            assert ready, f"it never came to that:\n{self.screen.text()}"
            self._read()
        return self.screen.text()

    def until_shown(self, *texts: str) -> str:
        return self.until(lambda screen: all(text in screen for text in texts))

    def ended(self) -> int:
        """Its exit status, and that it has put the terminal back as it was."""
        status = self.process.wait(PATIENCE_S)
        while select.select([self._ours], [], [], 0)[0]:
            self._read()
        self.expect_restored()
        return status

    def expect_restored(self) -> None:
        assert self.screen.modes == set()
        assert termios.tcgetattr(self._theirs) == self.modes

    def _read(self) -> None:
        data = os.read(self._ours, 65536)
        self.written += data
        if self._addressed:
            self.screen.feed(data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


@contextmanager
def watching(*words: str, **options: Any) -> Iterator[Watching]:
    top = Watching(*words, **options)
    try:
        yield top
    finally:
        top.close()


@pytest.fixture(scope="module")
def ghost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = {"model": "ghost", "trace_dir": str(tmp_path_factory.mktemp("trace"))}
    with (
        ghost_server(load_ghost(build_config(settings)), **settings) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=PATIENCE_S, verify=False) as client,
    ):
        yield client


def url_of(client: httpx.Client) -> list[str]:
    return ["--url", str(client.base_url), "--interval", "0.1"]


class Waiting(threading.Thread):
    """A client whose request waits, as generation is paused."""

    def __init__(self, client: httpx.Client, rid: str) -> None:
        super().__init__()
        self._client, self._rid = client, rid
        self.answer: dict[str, Any] = {}
        self.start()

    def run(self) -> None:
        body = {"rid": self._rid, "text": "hello", "sampling_params": {"max_new_tokens": 7}}
        self.answer = self._client.post("/generate", json=body).json()

    def reason(self) -> str:
        """How its request ended."""
        self.join(PATIENCE_S)
        if "error" in self.answer:
            return str(self.answer["error"]["message"])
        return str(self.answer["meta_info"]["finish_reason"]["type"])


def test_keys_pause_a_real_server_abort_a_real_request_and_let_the_others_go_on(ghost: httpx.Client) -> None:
    with watching(*url_of(ghost)) as top:
        top.until_shown("pawl top  ready  ghost", "0 requests by age")
        top.type("p")
        top.until_shown("pause: i in place")
        top.type("i")
        top.until_shown("pawl top  paused", "pause (in_place): done")
        hostile = Waiting(ghost, HOSTILE)
        top.until_shown("1 requests by age", "mine?[2J?]0;owned??")
        other = Waiting(ghost, "other")
        top.until_shown("2 requests by age", "queued 2")
        top.type("j")
        top.until_shown("> mine?[2J")
        top.type("a")
        top.until_shown("1 requests by age", "abort mine?[2J?]0;owned??: done")
        assert "abort" in hostile.reason()
        top.type("c")
        top.until_shown("pawl top  ready", "0 requests by age")
        assert other.reason() == "length"
        top.type("f")
        top.until_shown("flush: done")
        top.type("q")
        assert top.ended() == 0


def test_all_requests_are_aborted_after_a_yes(ghost: httpx.Client) -> None:
    with watching(*url_of(ghost)) as top:
        ghost.post("/pause_generation", json={"mode": "in_place"})
        clients = [Waiting(ghost, f"client-{number}") for number in range(3)]
        top.until_shown("3 requests by age")
        top.type("A")
        top.until_shown("abort all requests?")
        top.type("\x1b")
        top.until_shown("not done")
        top.type("A")
        top.until_shown("abort all requests?")
        top.type("y")
        top.until_shown("0 requests by age", "abort all: done")
        ghost.post("/continue_generation", json={})
        assert all("abort" in client.reason() for client in clients)


@pytest.mark.parametrize(("keys", "status"), [("q", 0), ("\x03", EXIT_INTERRUPTED)])
def test_the_terminal_is_as_it_was_after_a_key_that_ends_it(ghost: httpx.Client, keys: str, status: int) -> None:
    with watching(*url_of(ghost)) as top:
        top.until_shown("ready")
        assert top.screen.modes == {"1049", "25", "7"}
        top.type(keys)
        assert top.ended() == status


def test_its_key_ends_it_where_the_signal_was_ignored_at_the_start(ghost: httpx.Client) -> None:
    ours = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in what `make test &` of a script starts
    try:
        top = Watching(*url_of(ghost))
    finally:
        signal.signal(signal.SIGINT, ours)
    with closing(top):
        top.until_shown("ready")
        top.type("\x03")
        assert top.ended() == EXIT_INTERRUPTED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_as_it_was_after_a_signal_that_ends_it(ghost: httpx.Client, number: signal.Signals) -> None:
    with watching(*url_of(ghost)) as top:
        top.until_shown("ready")
        top.process.send_signal(number)
        assert top.ended() == 128 + number


def test_it_can_be_stopped_and_gone_on_with(ghost: httpx.Client) -> None:
    with watching(*url_of(ghost)) as top:
        top.until_shown("ready")
        top.type("\x1a")
        os.waitid(os.P_PID, top.process.pid, os.WSTOPPED)
        top.until(lambda screen: "1049" not in top.screen.modes)
        top.expect_restored()
        top.process.send_signal(signal.SIGCONT)
        top.until(lambda screen: "1049" in top.screen.modes and "ready" in screen)
        top.type("q")
        assert top.ended() == 0


def test_another_size_is_drawn_anew_within_it(ghost: httpx.Client) -> None:
    with watching(*url_of(ghost)) as top:
        top.until_shown("health", "h help")
        for width, height in ((40, 12), (20, 4), (132, 43), (80, 24)):
            top.resize(width, height)
            top.screen.strict = False  # what was drawn for the size before may still come
            top.type("h")
            top.until_shown("j k   choose")
            top.screen.strict = True
            top.type("h")
            top.until_shown("health", "q quit")
        top.until_shown("health", "0 requests by age", "q quit")
        top.type("q")
        assert top.ended() == 0


def test_no_colour_where_none_is_wanted_and_some_where_it_is(ghost: httpx.Client) -> None:
    with watching(*url_of(ghost), NO_COLOR="1") as plain, watching(*url_of(ghost)) as colourful:
        plain.until_shown("ready", "h help")
        colourful.until_shown("ready", "h help")
        assert plain.screen.styles == set()
        assert {"0", "1", "32"} <= colourful.screen.styles


def test_a_terminal_that_cannot_move_gets_one_screen_below_the_other(ghost: httpx.Client) -> None:
    with watching(*url_of(ghost), TERM="dumb") as top:
        while top.written.count(b"pawl top  ready") < 2:
            top._read()
        assert b"\x1b" not in top.written
        top.type("q")
        assert top.ended() == 0


def serve(port: int, folder: Path) -> subprocess.Popen[bytes]:
    words = ["-m", "pawl.cli", "serve", "ghost", "--port", str(port), "--trace-dir", str(folder)]
    return subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL)


def test_it_outlives_a_server_that_is_killed_and_finds_the_next_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with watching("--url", f"http://127.0.0.1:{port}", "--interval", "0.1") as top:
        top.until_shown("pawl top  unreachable  http://127.0.0.1", "unreachable since", "refused")
        top.type("f")
        top.until_shown("the server does not answer")
        for _ in range(2):
            server = serve(port, tmp_path)
            try:
                text = top.until_shown("pawl top  ready  ghost", "0 requests by age")
                assert "unreachable" not in text
            finally:
                server.kill()
                server.wait()
            top.until_shown("pawl top  unreachable  ghost", "unreachable since", "what follows is of", "health")
        top.type("q")
        assert top.ended() == 0


# ---- where there is no terminal ----


def test_without_a_terminal_it_is_said_once(ghost: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", *url_of(ghost)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pawl top  ready  ghost  weights default  http://127.0.0.1")
    assert lines[-1] == "0 requests by age"
    assert not any("quit" in line for line in lines)


def test_json_has_all_that_was_said_in_characters_that_move_no_terminal(
    ghost: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    session = "\x9b31m"
    assert ghost.post("/open_session", json={"session_id": session, "capacity_of_str_len": 10}).status_code == 200
    assert main(["top", "--json", *url_of(ghost)]) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    said = json.loads(text)
    assert said["scheduler"]["open_sessions"][0]["session_id"] == session
    assert said["rates"]["steps"] == 0.0
    assert said["health"]["status"] == "ok"
    assert ghost.post("/close_session", json={"session_id": session}).status_code == 200


def test_a_server_that_does_not_answer_is_a_failure_and_a_wrong_call_one_of_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert main(["top", "--once", "--url", f"http://127.0.0.1:{port}"]) == 1
    assert "refused" in capsys.readouterr().err
    assert main(["top", "--interval", "0"]) == 2
    assert main(["top", "--url", "nonsense"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["top", "--interval", "nan"])


def test_who_may_not_list_requests_sees_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    with Served(api_key="user-key", admin_api_key="admin-key") as served:
        words = ["top", "--once", "--interval", "0.1", "--url", served.url]
        assert main([*words, "--api-key", "user-key"]) == 0
        assert "to list requests takes the admin key" in capsys.readouterr().out
        assert main([*words, "--api-key", "user-key", "--admin-api-key", "admin-key"]) == 0
        assert "0 requests by age" in capsys.readouterr().out
        assert main(words) == 1
