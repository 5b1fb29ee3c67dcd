"""Looks at a server, and what they say together."""

from __future__ import annotations

import socket
import threading

import msgspec
import pytest

from pawl.top.reading import Lost, Reading, Source, Watched, number
from tests.pawl.fake_engine import Served
from tests.pawl.watching import URL, reading, scheduler, watched


def later(at: float, steps: int) -> Reading:
    state = scheduler()
    state["counters"] = state["counters"] | {"steps": steps}
    return reading(at, state)


def test_rates_are_between_the_first_and_the_last_look() -> None:
    assert watched(later(1.0, 100), later(2.0, 103), later(5.0, 120)).rate("counters", "steps") == 5.0
    assert watched(later(1.0, 100)).rate("counters", "steps") is None
    assert watched(later(1.0, 100), later(1.0, 120)).rate("counters", "steps") is None


def test_rates_forget_what_is_long_ago() -> None:
    seen = watched(*(later(float(at), at if at < 9 else 10 * at - 81) for at in range(1, 15)))
    assert seen.rate("counters", "steps") == 10.0


def test_a_server_that_has_started_anew_has_no_rate_below_zero() -> None:
    seen = watched(later(1.0, 100), later(2.0, 5))
    assert seen.rate("counters", "steps") is None
    seen.add(later(3.0, 9))
    assert seen.rate("counters", "steps") == 4.0


def test_the_first_look_in_vain_is_remembered_until_one_is_not() -> None:
    seen = watched(later(1.0, 100))
    for at, why in ((2.0, "refused"), (3.0, "timed out")):
        seen.add(Lost(at, f"12:00:0{at:.0f}", why))
    assert seen.lost is not None
    assert (seen.lost.clock, seen.why) == ("12:00:02", "timed out")
    assert seen.last is not None
    seen.add(later(4.0, 7))
    assert (seen.lost, len(seen.looks)) == (None, 1)


@pytest.mark.parametrize("value", ["7", None, [7], {"it": 7}, float("nan"), float("inf"), 10**400])
def test_what_is_no_number_counts_as_none(value: object) -> None:
    assert number({"it": value}, "it") == 0.0


def test_a_server_is_read_with_the_key_it_takes() -> None:
    with Served(api_key="user-key", admin_api_key="admin-key") as served:
        assert served.url.startswith("http://127.0.0.1")
        without = Source(served.url, None).look(1.0, "12:00:00")
        assert isinstance(without, Lost)
        assert without.why.startswith("it says 401: no key")
        user = Source(served.url, "user-key").look(1.0, "12:00:00")
        admin = Source(served.url + "/v1/", "admin-key").look(1.0, "12:00:00")
        assert isinstance(user, Reading)
        assert isinstance(admin, Reading)
        assert (user.listed, admin.listed) == (False, True)
        assert user.state == admin.state
        assert (user.health["status"], user.server["status"]) == ("ok", "ready")
        assert Source(served.url, "user-key").do("/flush_cache", {}).startswith("not done (401)")
        assert Source(served.url, "admin-key").do("/flush_cache", {}) == "done"


def test_a_port_where_nobody_is_and_one_where_somebody_speaks_otherwise_are_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def speak() -> None:
            with listener.accept()[0] as client:
                client.recv(4096)
                client.sendall(b"220 \x1b[2J mail\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        look = Source(address, None).look(1.0, "12:00:00")
        thread.join()
    assert isinstance(look, Lost)
    assert "BadStatusLine" in look.why
    assert isinstance(Source(address, None).look(1.0, "12:00:00"), Lost)
    assert Source(address, None).do("/flush_cache", {}) != "done"


def test_what_is_seen_can_be_empty() -> None:
    assert Watched(URL).last is None
    empty = Reading(1.0, "12:00:00", {}, {}, {})
    assert msgspec.structs.replace(empty, at=2.0).number("counters", "steps") == 0.0
