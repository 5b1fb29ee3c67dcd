"""`pawl ctl`: messages reach a running server, and the exit status says what became of them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec
import pytest

from pawl.actors.control import ROWS, Ask
from pawl.actors.control_row import Row, Who, parameters
from pawl.cli import main
from pawl.commands import remote
from pawl.commands.failures import CommandFailed
from pawl.commands.remote import RemoteSpeaker
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.limits import SetState
from tests.pawl.fake_engine import Served


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with Served(api_key="user-key", admin_api_key="admin-key") as served:
        yield served


def test_flags_become_the_fields_of_the_message(locked: Served, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ctl", "flush-cache", "--timeout", "2.5", "--url", locked.url, "--api-key", "admin-key"]
    assert main(words) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["message"] == "cache flushed"
    asked = [message.message for message in locked.engine.seen if isinstance(message, Ask)]
    assert asked[-1] == FlushCache(2.5)


WORDS = {"shapes": "[1]", "server_args": "a=1"}
"""Of fields for which not any word will do."""


@pytest.mark.parametrize("row", [row for row in ROWS if row.routes and row.command], ids=lambda row: row.name)
def test_every_message_with_a_route_asks_for_the_key_that_its_row_names(
    locked: Served, row: Row, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    required = [parameter for parameter in parameters(row.taken) if parameter.required]
    flags = [
        word
        for parameter in required
        for word in (f"--{parameter.name.replace('_', '-')}", WORDS.get(parameter.name, "1"))
    ]
    words = ["ctl", row.name, *flags, "--url", locked.url]
    monkeypatch.delenv("PAWL_API_KEY", raising=False)
    monkeypatch.delenv("PAWL_ADMIN_API_KEY", raising=False)
    assert main(words) == 1
    assert "401" in capsys.readouterr().err
    monkeypatch.setenv("PAWL_API_KEY", "user-key")
    main(words)
    assert ("401" in capsys.readouterr().err) is (row.who is Who.ADMIN)
    monkeypatch.setenv("PAWL_ADMIN_API_KEY", "admin-key")
    main(words)
    assert "401" not in capsys.readouterr().err


def test_pairs_become_an_object_whose_values_have_types(locked: Served) -> None:
    words = ["--url", locked.url, "--api-key", "admin-key"]
    main(["ctl", "set-state", "--server-args", "max_running=2", "chunked_prefill_size=32", *words])
    asked = [message.message for message in locked.engine.seen if isinstance(message, Ask)]
    assert asked[-1] == SetState(max_running=2, prefill_chunk=32)
    with pytest.raises(SystemExit, match="2"):
        main(["ctl", "set-state", "--server-args", "max_running", *words])


def test_what_was_not_done_is_an_exit_status(locked: Served, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--url", locked.url, "--api-key", "admin-key"]
    assert main(["ctl", "abort", "--rid", "nobody", *words]) == 1
    assert main(["ctl", "abort", "--abort-all", *words]) == 0
    assert main(["ctl", "abort", *words]) == 1
    assert "send rid" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["flush-cache", "--timeout", "soon"], ["flush-cache", "--timeout", "-1"]])
def test_values_that_cannot_be_are_refused_before_anything_is_sent(
    words: list[str], locked: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(locked.engine.seen)
    assert main(["ctl", *words, "--url", locked.url, "--api-key", "admin-key"]) == 2
    assert "timeout" in capsys.readouterr().err
    assert len(locked.engine.seen) == count


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str]:
    """The exit status, and the last line of what is said."""
    try:
        status: int | str | None = main(words)
    except SystemExit as ended:
        status = ended.code
    return status, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        ["load-adapter", "--lora-path", "x", "--lora-name", "\udcff"],
        ["flush-cache", "--timeout", "\udcff"],
        ["release-memory", "--tags", "\udcff"],
        ["release-memory", "--tags", "[" * 50_000],
        ["set-state", "--server-args", "x=" + "[" * 50_000],
        ["set-state", "--server-args", "[" * 50_000],
        ["loads", "[" * 50_000],
        ["loads", "--api-key", "x\n"],
        ["loads", "--api-key", "\u00e9"],
    ],
    ids=lambda words: f"{words[0]} {words[-2]}",
)
def test_words_of_any_kind_end_in_one_short_line(
    words: list[str], locked: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is no text, or nested without an end, is no traceback; and is not said again at length."""
    count = len(locked.engine.seen)
    status, line = told(["ctl", *words, "--url", locked.url], capsys)
    assert (status, len(locked.engine.seen)) == (2, count)
    assert len(line) < 1200


def test_where_no_server_is_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ctl", "loads", "--url", "http://127.0.0.1:9"]) == 1
    assert main(["ctl", "loads", "--url", "somewhere"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize(
    "url",
    [
        "http://a b/",
        "http://\udcff/",
        "http://" + "a" * 70_000,
        "http://a..b/",
        "http://127.0.0.1:9/\n",
        "http://x/\u00e9",
    ],
    ids=lambda url: ascii(url)[:20],
)
@pytest.mark.parametrize("words", [["ctl", "loads"], ["chat"]], ids=" ".join)
def test_what_is_no_url_is_said_to_be_none(words: list[str], url: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, line = told([*words, "--url", url], capsys)
    assert status == 2
    assert "is not a URL of a server" in line
    assert len(line) < 500


@contextmanager
def stranger(answer: bytes) -> Iterator[str]:
    """The URL of what answers each request so, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


OK = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b"
STRANGERS = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "nothing": b"",
    "cut short": b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{",
    "a bad chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "HTML": OK % (9, b"<p>hi</p>"),
    "bytes": OK % (4, b'"\xff\xfe"'),
    "depth": OK % (100_000, b"[" * 100_000),
}


@pytest.mark.parametrize("what", STRANGERS)
@pytest.mark.parametrize("words", ["ctl loads", "bench online"])
def test_what_is_no_server_of_this_kind_is_told_in_one_line(
    words: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with stranger(STRANGERS[what]) as url:
        assert main([*words.split(), "--url", url]) == 1
    error = capsys.readouterr().err
    assert [line for line in error.splitlines() if line.startswith("pawl: ")] == [error.splitlines()[-1]]


EVENTS = (b"<p>", b"7", b'{"choices": [3]}', b"[[", b"[" * 100_000, b'"\xff"')
STREAMS = [OK % (len(each) + 7, b"data: %b\n" % each) for each in EVENTS]


@pytest.mark.parametrize("answer", [*STRANGERS.values(), *STREAMS])
@pytest.mark.parametrize("model", ["m", None])
def test_a_chat_with_a_stranger_fails_in_one_line_or_says_nothing(model: str | None, answer: bytes) -> None:
    with stranger(answer) as url, suppress(OSError, CommandFailed):
        assert "".join(RemoteSpeaker(url, None, model, {}, []).reply([])) == ""


def test_a_reply_without_an_end_is_read_no_further_than_it_may_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "MOST_BYTES", 1 << 20)
    with stranger(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (1 << 20) + b"{}") as url:
        assert main(["ctl", "loads", "--url", url]) == 1
    assert "more than 1 MiB" in capsys.readouterr().err
