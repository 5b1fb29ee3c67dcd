"""A served fake engine for each module, and a client that checks the books after each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

    from benchmarks.second_host import SecondHost
    from tests.pawl.fake_engine import Served


PATIENCE_S = 180.0


@pytest.fixture(scope="session", autouse=True)
def patience() -> None:
    """Clients that name no time wait as long as the others: httpx's own five seconds pass where other work has the
    processors."""
    if find_spec("httpx") is not None:
        from httpx._config import DEFAULT_TIMEOUT_CONFIG

        for part in ("connect", "read", "write", "pool"):
            setattr(DEFAULT_TIMEOUT_CONFIG, part, PATIENCE_S)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    # Late, as below: a machine that is there to measure a device need not have a web server.
    from tests.pawl.fake_engine import Served

    with Served() as served:
        yield served


@pytest.fixture
def engine(served: Served) -> Iterator[Any]:
    """The fake engine, which is set to echo again afterwards."""
    yield served.engine
    served.engine.script, served.engine.in_reasoning = "", False


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    """Whatever the test did, every request must have ended, exactly once, when it is over."""
    import httpx

    # Plain HTTP: reading the certificates for each client would take longer than most tests.
    with httpx.Client(base_url=served.url, timeout=PATIENCE_S, verify=False) as client:
        yield client
    gateway = served.engine.gateway
    served.on_loop(served.engine.release)
    served.engine.until(lambda: gateway.num_live == 0)
    served.on_loop(gateway.check)
    assert gateway.totals.violations.total() == 0


@pytest.fixture(scope="module")
def host() -> Iterator[SecondHost]:
    """A second host on this machine, where there can be one."""
    from benchmarks.second_host import NoSecondHost, second_host

    with ExitStack() as stack:
        try:
            found = stack.enter_context(second_host())
        except NoSecondHost as error:
            pytest.skip(str(error))
        yield found
