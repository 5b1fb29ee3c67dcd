"""Clients that keep us waiting, connections without end, broken requests behind good ones, clients that half hang up.

Time is an argument of `Connection.look`: a test says how late it is.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from pawl.http.connections import BODY_BYTES_PER_S, BODY_GRACE_S, HEAD_S, MAX_HEAD, SEND_S, Connection, ConnectionLimits
from pawl.lifecycle.states import Cause
from tests.pawl.fake_engine import PATIENCE_S, Served
from tests.pawl.reading import everything, post

GOOD = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as served:
        yield served


@contextlib.contextmanager
def connected(served: Served, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(served.address, PATIENCE_S) as client:
        client.sendall(sent)
        yield client


def cut(served: Served) -> dict[str, int]:
    assert served.server is not None
    return dict(served.server.limits.cut)


def later(served: Served, seconds: float) -> None:
    """It is so much later for all connections."""
    served.on_loop(lambda: [each.look(time.monotonic() + seconds) for each in served.connections()])


def answered(connection: Connection) -> bool:
    return connection.cycle is not None and connection.cycle.response_complete


# ---- time ----


def test_one_that_cannot_be_looked_at_is_cut_and_no_other_is_nor_the_server(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(served) as one, connected(served, GOOD) as other:
        assert other.recv(15) == b"HTTP/1.1 200 OK"
        first = next(each for each in served.connections() if each.client[1] == one.getsockname()[1])
        monkeypatch.setattr(first, "_half_closed", True)
        monkeypatch.setattr(first, "_probe", {}.__getitem__)  # takes an argument: it raises
        served.on_loop(lambda: [each.look(time.monotonic()) for each in served.connections()])
        assert everything(one) == b""
        other.sendall(GOOD)
        while b"HTTP/1.1 200 OK" not in other.recv(65_536):
            pass


@pytest.mark.parametrize("sent", [b"", b"GET /hea", GOOD[:-2]], ids=["nothing", "half a line", "half a head"])
def test_a_head_that_does_not_come_is_waited_for_so_long_and_no_longer(served: Served, sent: bytes) -> None:
    with connected(served, sent) as client:
        served.until(lambda: served.connections())
        later(served, HEAD_S - 1.0)
        assert cut(served) == {}
        later(served, HEAD_S + 1.0)
        assert everything(client).startswith(b"HTTP/1.1 408 ")
    assert cut(served) == {"head": 1}


def test_a_body_that_stops_coming_is_cut_and_nothing_of_it_stays(served: Served) -> None:
    with connected(served, post(b'{"text": ', length=1000)) as client:
        served.until(lambda: served.connections() and served.connections()[0].cycle is not None)
        later(served, HEAD_S + 1.0)
        assert everything(client).startswith(b"HTTP/1.1 408 ")
    served.until(lambda: not served.connections())
    assert cut(served) == {"body": 1}


def test_a_body_that_trickles_is_cut_though_it_never_stops(served: Served) -> None:
    with connected(served, post(b"x" * 100, length=10_000_000)):
        served.until(lambda: served.connections() and served.connections()[0].cycle is not None)
        (connection,) = served.connections()

        def trickle() -> float:
            connection._body_began -= BODY_GRACE_S + 1.0  # as if it had begun so long ago
            connection.on_body(b"y")
            assert connection._deadline is not None
            return connection._deadline[0]

        assert served.on_loop(trickle) < time.monotonic()
        assert served.on_loop(lambda: connection._body_bytes) < BODY_BYTES_PER_S


def test_a_request_that_is_being_answered_is_never_cut_for_its_time(served: Served) -> None:
    served.on_loop(served.engine.hold)
    body = json.dumps({"text": "hello", "sampling_params": {"max_new_tokens": 400}}).encode()
    with connected(served, post(body)) as client:
        served.engine.until(lambda: len(served.engine.live) == 1)
        later(served, 3600.0)
        served.on_loop(served.engine.release)
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
    assert cut(served) == {}


def test_a_client_that_reads_nothing_is_cut_and_its_request_aborted(served: Served) -> None:
    body = json.dumps({"text": "hello", "sampling_params": {"max_new_tokens": 500}, "stream": True}).encode()
    with connected(served, post(body)):
        served.until(lambda: served.connections() and served.connections()[0].cycle is not None)
        (connection,) = served.connections()
        served.on_loop(connection.pause_writing)
        later(served, SEND_S + 1.0)
        served.until(lambda: not served.connections())
    served.engine.until(lambda: served.engine.gateway.num_live == 0)
    assert cut(served) == {"send": 1}


# ---- number and size ----


def test_beyond_the_limit_health_is_told_and_nothing_else(served: Served) -> None:
    assert served.server is not None
    served.server.limits.most = 2
    with contextlib.ExitStack() as open_ones:
        for _ in range(2):
            open_ones.enter_context(connected(served))
        served.until(lambda: len(served.connections()) == 2)
        with httpx.Client(base_url=served.url) as client:
            assert client.get("/health").status_code == 200
            refused = client.get("/v1/models")
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
    served.until(lambda: not served.connections())
    with httpx.Client(base_url=served.url) as client:
        assert client.get("/v1/models").status_code == 200
    assert cut(served)["connections"] >= 1


def test_a_head_without_end_is_cut(served: Served) -> None:
    with connected(served, b"GET / HTTP/1.1\r\nhost: x\r\nx-long: ") as client:
        with contextlib.suppress(ConnectionError):
            for _ in range(4):
                client.sendall(b"x" * (MAX_HEAD // 2))
        served.until(lambda: cut(served).get("head_size"))
    assert cut(served) == {"head_size": 1}


def test_heads_that_come_together_are_not_one_long_head(served: Served) -> None:
    count = 4 * MAX_HEAD // len(GOOD)
    with connected(served) as client:
        sending = threading.Thread(target=client.sendall, args=(GOOD * count,))
        sending.start()
        replies = b""
        while (num_replies := replies.count(b"HTTP/1.1 200 ")) < count and (data := client.recv(1 << 16)):
            replies += data
        sending.join(PATIENCE_S)
    assert num_replies == count
    assert cut(served) == {}


def test_a_head_that_comes_at_once_has_the_same_bound(served: Served) -> None:
    with connected(served, GOOD[:-2] + b"a: " + b"b" * MAX_HEAD + b"\r\n\r\n") as client:
        assert everything(client).startswith(b"HTTP/1.1 431 ")
    assert cut(served) == {"head_size": 1}


BODY = json.dumps({"text": "a", "sampling_params": {"max_new_tokens": 2}}).encode()


def in_chunks(body: bytes, size: int, more: bytes = b"") -> bytes:
    """A request whose body comes in chunks of `size`, with `more` in its head."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return post(b"").replace(b"content-length: 0", b"transfer-encoding: chunked\r\nconnection: close" + more) + chunks


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_body_may_come_in_chunks_of_any_size(served: Served, size: int) -> None:
    with connected(served, in_chunks(BODY + b" " * 60_000, size) + b"0\r\n\r\n") as client:
        assert everything(client).startswith(b"HTTP/1.1 200 ")
    assert cut(served) == {}


@pytest.mark.parametrize(
    "frame", [b"5;" + b"a" * 60_000, b"0\r\n" + b"a: " + b"b" * 60_000], ids=["extension", "trailer"]
)
def test_a_body_that_is_next_to_nothing_but_frame_is_cut(served: Served, frame: bytes) -> None:
    with connected(served, in_chunks(BODY, 1000) + frame) as client, contextlib.suppress(ConnectionError):
        served.until(lambda: served.connections()[0].cycle is not None)
        for _ in range(100):
            client.sendall(b"a" * 60_000)
        assert everything(client).startswith(b"HTTP/1.1 400 ")
    assert cut(served) == {"framing": 1}


def test_what_comes_behind_a_body_is_no_header(served: Served) -> None:
    trailers = b"0\r\nhost: evil.example\r\norigin: https://evil.example\r\n\r\n"
    with connected(served, in_chunks(BODY, 10) + trailers) as client:
        assert everything(client).startswith(b"HTTP/1.1 200 ")


UPGRADE = b"\r\nconnection: upgrade\r\nupgrade: h2c"


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("chunks", [False, True])
def test_who_asks_for_another_protocol_gets_an_answer_to_what_it_asked(
    served: Served, split: bool, chunks: bool
) -> None:
    # As Java's client does with every request.
    request = in_chunks(BODY, 10) + b"0\r\n\r\n" if chunks else post(BODY)
    head, _, body = request.partition(b"\r\n\r\n")
    with connected(served, head + UPGRADE + b"\r\n\r\n" + (b"" if split else body)) as client:
        if split:
            served.until(lambda: served.connections()[0].cycle is not None)
            client.sendall(body)
        reply = everything(client)
    assert reply.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in reply
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["meta_info"]["completion_tokens"] == 2


def test_a_question_without_a_body_that_asks_for_another_protocol_is_answered(served: Served) -> None:
    with connected(served, GOOD[:-4] + UPGRADE + b"\r\n\r\n") as client:
        assert everything(client).startswith(b"HTTP/1.1 200 ")


def test_unfinished_bodies_share_a_bound_and_give_it_back() -> None:
    with Served(max_body_bytes=100_000) as served, contextlib.ExitStack() as open_ones:
        part = post(b"x" * 90_000, length=100_000)
        for _ in range(6):
            open_ones.enter_context(connected(served, part))
        # Four bodies fill the bound; who comes after is told so, and the four wait for the rest of theirs.
        served.until(lambda: sum(answered(each) for each in served.connections()) == 2)
        open_ones.close()
        served.until(lambda: not served.connections())
        with httpx.Client(base_url=served.url) as again:
            assert again.post("/generate", json={"text": "x" * 80_000}).status_code != 503


def test_the_limit_leaves_a_reserve_of_descriptors() -> None:
    assert 1 <= ConnectionLimits().most <= 4096
    limits = ConnectionLimits(5)
    for _ in range(3):
        limits.count("head", 100.0)
    assert limits.cut == {"head": 3}


# ---- many requests on one connection ----


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"\x00\x01\x02", 400),
        (b"GET / HTTP/x.y\r\n\r\n", 400),
        *((GOOD.replace(b"1.1", version), 505) for version in (b"0.9", b"1.2", b"2.0", b"3.0", b"9.9")),
        (post(b"{}").replace(b"1.1", b"2.0"), 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ],
)
def test_good_requests_ahead_of_a_broken_one_are_answered(served: Served, bad: bytes, status: int) -> None:
    with connected(served, GOOD * 20 + bad + GOOD) as client:
        answers = everything(client)
    assert answers.count(b"HTTP/1.1 200 ") == 20, "what comes behind it is not read"
    assert answers.count(b"HTTP/1.1 %d " % status) == 1
    assert answers.index(b"HTTP/1.1 %d " % status) > answers.rindex(b"HTTP/1.1 200 ")
    assert cut(served) == {"malformed": 1}
    assert served.engine.seen == []


def test_a_body_that_breaks_off_costs_its_own_request_only(served: Served) -> None:
    chunked = (
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    with connected(served, GOOD * 3 + chunked + b"zz\r\n") as client:
        answers = everything(client)
    assert answers.count(b"HTTP/1.1 200 ") == 3
    assert answers.count(b"HTTP/1.1 400 ") == 1


# ---- clients that close their half ----


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_closes_its_half_still_gets_its_reply(served: Served, stream: bool) -> None:
    served.on_loop(served.engine.hold)
    body = json.dumps({"text": "hello", "sampling_params": {"max_new_tokens": 3}, "stream": stream}).encode()
    with connected(served, post(body)) as client:
        served.engine.until(lambda: len(served.engine.live) == 1)
        client.shutdown(socket.SHUT_WR)
        served.until(lambda: served.connections()[0]._half_closed)
        served.on_loop(served.engine.release)
        answer = everything(client)
    assert b"HTTP/1.1 200 " in answer
    assert b"hel" in answer
    assert served.engine.gateway.totals.ended[Cause.DISCONNECT] == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_is_gone_is_found_out_though_nothing_is_sent_to_it_yet(served: Served, stream: bool) -> None:
    served.on_loop(served.engine.hold)
    with connected(served, post(json.dumps({"text": "hello", "stream": stream}).encode())) as client:
        served.engine.until(lambda: len(served.engine.live) == 1)
        if stream:
            assert client.recv(1)
    served.until(lambda: not served.connections() or later_now(served))
    served.engine.until(lambda: served.engine.gateway.num_live == 0)
    assert served.engine.gateway.totals.ended[Cause.DISCONNECT] == 1


def later_now(served: Served) -> bool:
    """Look at all connections, as happens once a second; on the server's loop."""
    for each in served.connections():
        each.look(time.monotonic())
    return False
