"""A web page steers no local server: `Host`, `Origin` and the kind of a body are looked at before any route."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from pawl.http.guard import LOOPBACK, SINGLE, is_loopback
from tests.pawl.fake_engine import Served

BODY = {"text": "hello", "sampling_params": {"max_new_tokens": 1}}


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    """A server on the loopback address that has invited one page and one name."""
    hosts, origins = {*LOOPBACK, "pawl.example"}, {"https://friend.example"}
    with Served(hosts=hosts, origins=origins) as served, httpx.Client(base_url=served.url) as client:
        yield client


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:30000", "", "127.0.0.1.evil.example", "[::1", "a[b]", "@localhost@x"),
        *("evil@localhost", "localhost@evil.example", "localhost:80:80", "localhost:x", "localhost/", "localhost?"),
        *("localhost,evil.example", "localhost evil.example", "localhost..", ".localhost", "[localhost]", "::1"),
        *("[::1]evil.example", "[::2]", "[::1%25lo]", "127.1", "0x7f000001", "127.0.0.2", "localhost#evil.example"),
    ],
)
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/generate"])
def test_a_name_that_is_not_ours_is_refused_whatever_is_asked(guarded: httpx.Client, host: str, path: str) -> None:
    response = guarded.get(path, headers={"host": host})
    assert response.status_code == 403
    assert "--allowed-hosts" in response.text


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:30000", "pawl.example:80"),
        *("localhost.", "localhost.:8", "localhost:", "[0:0:0:0:0:0:0:1]", "[::0001]:80"),
    ],
)
def test_our_names_are_taken_with_any_port(guarded: httpx.Client, host: str) -> None:
    assert guarded.get("/health", headers={"host": host}).status_code == 200


def asked(client: httpx.Client, head: str) -> bytes:
    """All that comes back for a request that is this head and no more."""
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), 60.0) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n")
        return connection.makefile("rb").read()


OURS = "host: localhost\r\nconnection: close"


@pytest.mark.parametrize(
    "url",
    [
        *("http://evil.example/health", "https://evil.example:443/health", "http://evil.example:80/generate?x=1"),
        *("http://localhost@evil.example/health", "http://evil@localhost/health", "http://evil:x@localhost:1/health"),
        *("ws://evil.example/health", "http://[::2]/health", "HTTP://EVIL.EXAMPLE/health"),
    ],
)
def test_a_request_line_for_somebody_else_is_refused_as_his_host_is(guarded: httpx.Client, url: str) -> None:
    reply = asked(guarded, f"GET {url} HTTP/1.1\r\n{OURS}")
    assert reply.startswith(b"HTTP/1.1 403 ")
    assert b"--allowed-hosts" in reply


@pytest.mark.parametrize("url", ["http://localhost/health", "http://LOCALHOST.:1/health", "http://[::1]:80/health"])
def test_a_request_line_that_names_us_is_taken_beside_a_host_that_is_ours(guarded: httpx.Client, url: str) -> None:
    assert asked(guarded, f"GET {url} HTTP/1.1\r\n{OURS}").startswith(b"HTTP/1.1 200 ")
    foreign = OURS.replace("localhost", "evil.example")
    assert asked(guarded, f"GET {url} HTTP/1.1\r\n{foreign}").startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET //evil.example/health", 404),
        ("GET /http://evil.example/health", 404),
        ("GET health", 400),
        ("GET http:///health", 400),
        ("CONNECT evil.example:80", 400),
        ("OPTIONS *", 404),
    ],
)
def test_other_request_lines_lead_nowhere(guarded: httpx.Client, line: str, status: int) -> None:
    assert asked(guarded, f"{line} HTTP/1.1\r\n{OURS}").startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("more", ["X-Forwarded-Host", "Forwarded", "X-Host", "X-Original-Host"])
def test_no_other_header_stands_for_the_host(guarded: httpx.Client, more: str) -> None:
    foreign, value = OURS.replace("localhost", "evil.example"), "host=localhost" if more == "Forwarded" else "localhost"
    assert asked(guarded, f"GET /health HTTP/1.1\r\n{foreign}\r\n{more}: {value}").startswith(b"HTTP/1.1 403 ")
    value = value.replace("localhost", "evil.example")
    assert asked(guarded, f"GET /health HTTP/1.1\r\n{OURS}\r\n{more}: {value}").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "h2c, HTTP2-Settings"])
def test_another_protocol_is_no_way_around_the_host(guarded: httpx.Client, upgrade: str) -> None:
    more = f"upgrade: {upgrade}\r\nconnection: upgrade\r\nsec-websocket-key: x\r\nhttp2-settings: AAMAAABk"
    for line, host, status in (
        ("GET /health", "evil.example", 403),
        ("GET http://evil.example/health", "localhost", 403),
        ("GET /health", "localhost", 200),
    ):
        reply = asked(guarded, f"{line} HTTP/1.1\r\nhost: {host}\r\n{more}")
        assert reply.startswith(f"HTTP/1.1 {status} ".encode())


def test_a_request_of_http_1_0_without_a_host_is_for_nobody(guarded: httpx.Client) -> None:
    assert asked(guarded, "GET /health HTTP/1.0").startswith(b"HTTP/1.1 403 ")
    assert asked(guarded, "GET http://localhost/health HTTP/1.0").startswith(b"HTTP/1.1 403 ")
    assert asked(guarded, "GET /health HTTP/1.0\r\nhost: localhost").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "https://friend.example.evil"]
)
@pytest.mark.parametrize("path", ["/generate", "/abort_request", "/flush_cache", "/v1/completions"])
def test_a_page_of_another_origin_changes_nothing(guarded: httpx.Client, origin: str, path: str) -> None:
    response = guarded.post(path, json=BODY, headers={"origin": origin})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


def test_our_own_page_and_an_invited_one_may_ask(guarded: httpx.Client) -> None:
    own = str(guarded.base_url).rstrip("/")
    for origin in (own, "https://friend.example"):
        assert guarded.post("/generate", json=BODY, headers={"origin": origin}).status_code == 200
    question = {"origin": "https://friend.example", "access-control-request-method": "POST"}
    answer = guarded.options("/v1/completions", headers=question)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert guarded.options("/v1/completions", headers=question | {"origin": "https://evil.example"}).status_code == 400


@pytest.mark.parametrize("name", sorted(SINGLE))
def test_a_header_that_is_decided_by_comes_once(guarded: httpx.Client, name: bytes) -> None:
    twice = (b"host: localhost\r\n" if name != b"host" else b"") + (name + b": localhost\r\n") * 2
    with socket.create_connection(("127.0.0.1", guarded.base_url.port or 0), 60.0) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nconnection: close\r\n" + twice + b"\r\n")
        reply = client.makefile("rb").read()
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"the header %b came more than once" % name in reply


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None]
)
def test_a_body_that_a_form_could_send_is_refused(guarded: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    response = guarded.post("/abort_request", content=b'{"abort_all": true}', headers=headers)
    assert response.status_code == 415
    assert "application/json" in response.text


def test_bytes_are_taken_where_a_route_takes_them_and_nowhere_else(guarded: httpx.Client) -> None:
    raw = {"content-type": "application/octet-stream"}
    assert guarded.post("/abort_request", content=b"1234", headers=raw).status_code == 415
    assert guarded.post("/update_weights_from_tensor", content=b"1234", headers=raw).status_code != 415


def test_a_packed_body_is_refused_by_its_name(guarded: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = guarded.post("/generate", content=b"\x1f\x8b", headers=headers)
    assert response.status_code == 415
    assert "gzip" in response.text


def test_a_body_that_is_framed_in_a_way_that_is_not_read_is_refused(guarded: httpx.Client) -> None:
    head = b" /generate HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip, chunked\r\n\r\n"
    for method in (b"POST", b"GET"):
        with socket.create_connection(("127.0.0.1", guarded.base_url.port or 0), 60.0) as client:
            client.sendall(method + head + b"2\r\n{}\r\n0\r\n\r\n")
            reply = client.makefile("rb").read()  # to the end of the connection
        assert reply.startswith(b"HTTP/1.1 501 ")
        assert b"gzip, chunked" in reply


def test_json_by_any_of_its_names_and_no_body_at_all_are_taken(guarded: httpx.Client) -> None:
    for kind in ("application/json", "application/json; charset=utf-8", "application/vnd.api+json"):
        assert guarded.post("/generate", json=BODY, headers={"content-type": kind}).status_code == 200
    assert guarded.post("/flush_cache").status_code == 200


def test_addresses_that_only_this_machine_reaches() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "localhost", "::1")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.com")] == [False] * 4
