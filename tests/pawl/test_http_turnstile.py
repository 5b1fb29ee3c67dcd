"""Many requests at once do their work a few pieces at a time, and what else the event loop has to do comes between."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any

import pytest
from starlette.requests import Request

from pawl.actors.messages.generate import Submit
from pawl.actors.sink import Delta
from pawl.http.body import MAX_PIECE, BodyBudget, read_body
from pawl.http.errors import Problem
from pawl.http.replies import Reply, ReplyStream
from pawl.http.turnstile import PIECES, SHORTEST_REST_S, InTurns, Turnstile
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


class Skipping(asyncio.SelectorEventLoop):
    """An event loop whose time passes only where it has nothing to do but to wait: and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0
        selector = self._selector  # type: ignore[attr-defined]
        ready = selector.select

        def select(timeout: float | None) -> Any:
            self.passed += timeout or 0.0
            return ready(0)

        selector.select = select

    def time(self) -> float:
        return self.passed


def rested_until(took: list[float], num_streams: int) -> list[float]:
    """When each of two that work at a time, and one after them, has rested for pieces that took so long."""
    until = [0.0] * len(took)
    turnstile = Turnstile()

    async def one(place: int) -> None:
        await turnstile.rest(took[place])
        until[place] = asyncio.get_running_loop().time()

    async def many() -> None:
        turnstile.num_streams = num_streams
        await asyncio.gather(*map(one, range(len(took) - 1)))
        await one(len(took) - 1)
        turnstile.num_streams = 0
        there = asyncio.get_running_loop().time()
        await turnstile.rest(took[0])  # nobody waits for tokens any more
        assert asyncio.get_running_loop().time() == there

    with asyncio.Runner(loop_factory=Skipping) as runner:
        runner.run(many())
    return until


@pytest.mark.parametrize("num_streams", [1, 2])
def test_pieces_of_large_bodies_rest_together_as_long_as_they_took_while_tokens_are_waited_for(
    num_streams: int,
) -> None:
    long = 4 * SHORTEST_REST_S
    assert rested_until([long, long, long], num_streams) == pytest.approx([long, 2 * long, 3 * long])
    assert rested_until([long, long, long], 0) == [0.0] * 3


def test_rests_that_are_too_short_are_rested_together() -> None:
    short = 0.4 * SHORTEST_REST_S
    assert rested_until([short, short, short], 1) == pytest.approx([0.0, 0.0, 3 * short])


def test_pieces_of_a_large_body_are_counted_in_turns_and_refused_as_before() -> None:
    async def many(mark: Callable[[], None]) -> None:
        budget, left = BodyBudget(1 << 30), 4

        async def receive() -> MutableMapping[str, Any]:
            nonlocal left
            left -= 1
            return {"type": "http.request", "body": b"[" * (3 * MAX_PIECE), "more_body": left > 0}

        class Marking(Turnstile):
            async def turn(self, had: int = 0) -> int:
                mark()
                return await super().turn(0)

        scope: dict[str, Any] = {"type": "http", "headers": [], "turnstile": Marking(), "turn": 0}
        with pytest.raises(Problem, match="lists and objects"):
            await read_body(Request(scope, receive), 1 << 30, budget)
        assert (left, budget.held) == (0, 0)  # it was read to its end all the same

    assert sum(rounds(many)) == 1  # the first piece said enough

    async def text(mark: Callable[[], None]) -> None:
        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": b'"' + b"a" * (3 * MAX_PIECE) + b'"', "more_body": False}

        class Marking(Turnstile):
            async def turn(self, had: int = 0) -> int:
                mark()
                return await super().turn(had)

        scope: dict[str, Any] = {"type": "http", "headers": [], "turnstile": Marking(), "turn": 0}
        assert len(await read_body(Request(scope, receive), 1 << 30, BodyBudget(1 << 30))) == 3 * MAX_PIECE + 2

    assert sum(rounds(text)) == 5  # four pieces, and what is done with the whole


def test_a_stream_counts_while_it_waits_for_tokens_and_no_longer() -> None:
    counts: list[int] = []
    turnstile = Turnstile()

    class Streaming(Ended):
        told = 0

        async def arrivals(self, patience_s: float | None = None) -> list[tuple[int, Delta]]:
            counts.append(turnstile.num_streams)
            self.told += 1
            if self.told == 3:
                raise RuntimeError("the scheduler is gone")
            return [(0, Delta("said"))]

    class OfOne(ReplyStream):
        def _group(self) -> Any:
            return Streaming(asyncio.Event())

    class Written:
        independent, done_event = False, b"done"

        def delta(self, index: int, delta: Delta, inbox: Any) -> bytes:
            return b"event"

        def failure(self, problem: Problem) -> bytes:
            return b"failed"

    async def run() -> None:
        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                counts.append(turnstile.num_streams)

        submit = Submit(request=1, rid="a", sampling=SamplingParameters())
        stream = OfOne(None, [submit], Written())  # type: ignore[arg-type]
        await stream({"type": "http", "turnstile": turnstile}, receive, send)

    asyncio.run(run())
    # The first wait may end in a refusal; then: an event, a wait, an event, a wait that fails, and its event.
    assert counts == [0, 0, 1, 0, 1, 0]
    assert turnstile.num_streams == 0


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


class Failing(deque[Any]):
    """Fails when it is looked at for the first time."""

    fails = True

    def __getitem__(self, index: Any) -> Any:
        if self.fails:
            self.fails = False
            raise MemoryError
        return super().__getitem__(index)


def test_whoever_waits_has_a_turn_though_one_round_has_failed() -> None:
    async def run() -> list[int]:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        turnstile = Turnstile()
        turnstile._waiting = Failing()
        return await asyncio.wait_for(asyncio.gather(*(turnstile.turn() for _ in range(COUNT))), 60)

    assert Counter(asyncio.run(run())).most_common(1)[0][1] == PIECES
