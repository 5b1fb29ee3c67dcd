"""Long texts are converted beside the event loop, in a line that has an end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pawl.http.errors import Problem
from pawl.http.tokens import LITTLE, MOST_CALLS, Beside


def test_long_texts_are_converted_one_at_a_time_short_ones_at_once_and_too_many_are_told_to_wait() -> None:
    go, together = threading.Event(), threading.Semaphore(1)

    def work() -> int:
        assert together.acquire(blocking=False), "another one is at work"
        go.wait()
        together.release()
        return 1

    async def run() -> list[int]:
        beside = Beside()
        calls = [asyncio.ensure_future(beside.do(LITTLE + 1, work)) for _ in range(MOST_CALLS)]
        await asyncio.sleep(0)
        with pytest.raises(Problem, match="try again later") as refusal:
            await beside.do(LITTLE + 1, work)
        assert refusal.value.status == 503
        assert await beside.do(LITTLE, lambda: 2) == 2
        go.set()
        done = await asyncio.gather(*calls)
        return [*done, await beside.do(LITTLE + 1, lambda: 3)]

    assert asyncio.run(run()) == [1] * MOST_CALLS + [3]
