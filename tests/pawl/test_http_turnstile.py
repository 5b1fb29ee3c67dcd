"""Many requests at once do their work a few pieces at a time, and what else the event loop has to do comes between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any

from starlette.requests import Request

from pawl.actors.messages.generate import Submit
from pawl.actors.sink import Delta
from pawl.http.body import BodyBudget, read_body
from pawl.http.replies import Reply
from pawl.http.turnstile import PIECES, InTurns, Turnstile
from pawl.lifecycle.request import SamplingParameters

COUNT = 3 * PIECES + 1


class Ended:
    """A `RequestGroup` of one request, which ends when it is told to."""

    requests = (1,)
    inboxes = (None,)
    gone = False
    open = ()

    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended

    def abandon(self) -> None:
        raise AssertionError("nobody hangs up here")

    async def arrivals(self) -> list[tuple[int, Delta]]:
        await self._ended.wait()
        return [(0, Delta("said"))]


class Marked:
    """A renderer that counts what it writes."""

    independent = False

    def __init__(self, mark: Callable[[], None]) -> None:
        self._mark = mark

    def whole(self, deltas: Any, inboxes: Any) -> bytes:
        self._mark()
        return b"{}"


def rounds(many: Callable[[Callable[[], None]], Coroutine[Any, Any, None]]) -> list[int]:
    """How many pieces `many` did each time round the event loop, as it marked them, where there were any."""
    marks: list[int] = []

    async def run() -> None:
        turned, done = 0, False
        loop = asyncio.get_running_loop()

        def turn() -> None:
            nonlocal turned
            turned += 1
            if not done:
                loop.call_soon(turn)

        loop.call_soon(turn)
        await many(lambda: marks.append(turned))
        done = True

    asyncio.run(run())
    return list(Counter(marks).values())


def test_those_who_come_at_once_go_on_a_few_at_a_time_in_their_order() -> None:
    turnstile, order = Turnstile(), list[int]()

    async def one(number: int, mark: Callable[[], None]) -> None:
        await turnstile.turn()
        order.append(number)
        mark()

    async def many(mark: Callable[[], None]) -> None:
        await asyncio.gather(*(one(number, mark) for number in range(COUNT)))
        order.clear()
        await asyncio.gather(*(one(number, lambda: None) for number in range(COUNT)))  # it is free again

    assert rounds(many) == [PIECES, PIECES, PIECES, 1]
    assert order == list(range(COUNT))


def test_who_has_had_a_turn_keeps_it_for_this_time_round_only() -> None:
    turnstile = Turnstile()

    async def one(mark: Callable[[], None]) -> None:
        had = await turnstile.turn()
        assert await turnstile.turn(had) == had
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await turnstile.turn(had) != had
        mark()

    async def many(mark: Callable[[], None]) -> None:
        await asyncio.gather(*(one(mark) for _ in range(COUNT)))

    assert max(rounds(many)) <= PIECES


def test_who_was_cancelled_while_waiting_takes_no_turn() -> None:
    turnstile = Turnstile()

    async def many(mark: Callable[[], None]) -> None:
        async def one() -> None:
            await turnstile.turn()
            mark()

        tasks = [asyncio.ensure_future(one()) for _ in range(COUNT)]
        await asyncio.sleep(0)
        for task in tasks[PIECES : 2 * PIECES]:
            task.cancel()
        await asyncio.wait(tasks)

    assert rounds(many) == [PIECES, PIECES, 1]


def test_requests_begin_and_bodies_that_end_together_are_read_a_few_at_a_time() -> None:
    async def many(mark: Callable[[], None]) -> None:
        ended, budget = asyncio.Event(), BodyBudget(1 << 20)

        async def receive() -> MutableMapping[str, Any]:
            await ended.wait()
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            mark()
            assert await read_body(Request(scope, receive), 1 << 10, budget) == b"{}"
            mark()

        async def send(message: Any) -> None:
            raise AssertionError("nothing is answered here")

        app = InTurns(inner)
        asked = [app({"type": "http", "headers": []}, receive, send) for _ in range(COUNT)]
        whole = asyncio.gather(*asked)
        for _ in range(COUNT):  # all have begun
            await asyncio.sleep(0)
        ended.set()
        await whole
        assert budget.held == 0

    assert rounds(many) == [PIECES, PIECES, PIECES, 1] * 2


def test_whole_replies_that_end_together_are_written_a_few_at_a_time() -> None:
    async def many(mark: Callable[[], None]) -> None:
        ended = asyncio.Event()

        class OfOne(Reply):
            def _group(self) -> Any:
                return Ended(ended)

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            submit = Submit(request=1, rid="a", sampling=SamplingParameters())
            await OfOne(None, [submit], Marked(mark))(scope, receive, send)  # type: ignore[arg-type]

        async def receive() -> Any:
            await asyncio.Event().wait()

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        app = InTurns(inner)
        whole = asyncio.gather(*(app({"type": "http", "headers": []}, receive, send) for _ in range(COUNT)))
        for _ in range(COUNT):
            await asyncio.sleep(0)
        ended.set()
        await whole
        assert [message.get("body") for message in sent].count(b"{}") == COUNT

    assert rounds(many) == [PIECES, PIECES, PIECES, 1]
