"""mini-sglang's scheduler as a subject: `normal_loop`, and `overlap_loop` where two steps may be in flight.

Its loops take messages at the start of a turn, when one step at the most is in flight: so requests and aborts wait for
the next call of `schedule`, as they do in its socket. Whoever has aborted hears no more of the request: its frontend
has forgotten it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pawl.testing.subject.adapters.writing import source_of, written
from pawl.testing.subject.port import (
    Abort,
    Accounting,
    Apply,
    Call,
    Ended,
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
    from pawl.testing.subject.adapters import mini_sglang_calls as calls
except ImportError as error:
    raise ImportError(
        f"mini-sglang cannot be imported by this Python ({error}). Put its `python` folder on PYTHONPATH, and install "
        f"torch, transformers, msgpack, pyzmq and apache-tvm-ffi beside Pawl: see docs/subjects.md"
    ) from error


class MiniSglangScheduler(Subject):
    """`minisgl.scheduler.Scheduler`, without its engine."""

    offers: ClassVar[Offers] = Offers(
        in_flight=(1, 2), prefix_caching=(False, True), chunked_prefill=(True,), step_tokens=True, stop_tokens=True
    )

    def __init__(self, settings: Settings) -> None:
        self._scheduler = calls.scheduler_of(**_facts(settings))
        self._overlap = settings.in_flight > 1
        self._messages: list[Request | int] = []
        """Requests, and numbers of those that are aborted, which the scheduler has not seen."""
        self._live: dict[int, Request] = {}
        """Requests of which somebody wants to hear."""
        self._holding: dict[int, Any] = {}
        """Requests that have pages: launched, and not given back."""
        give_back = self._scheduler._free_req_resources

        def freed(request: Any) -> None:
            self._holding.pop(request.uid, None)
            give_back(request)

        self._scheduler._free_req_resources = freed

    def submit(self, request: Request) -> None:
        self._live[request.number] = request
        self._messages.append(request)

    def abort(self, request: int) -> None:
        del self._live[request]
        self._messages.append(request)

    def schedule(self) -> Step | None:
        messages, self._messages = self._messages, []
        for message in messages:
            if isinstance(message, Request):
                calls.send(self._scheduler, **_wishes(message))
            else:
                calls.abort(self._scheduler, message)
        launched = calls.next_step(self._scheduler)
        if launched is None:
            return None
        forward, rows = launched
        self._holding.update({each.uid: each for each in forward.batch.reqs})
        # In the overlapped loop a step's input may be what a step in flight draws, which only the device knows.
        return Step([Segment(*row[:4], tokens=None if self._overlap else row[4]) for row in rows], own=forward)

    def apply(self, step: Step, tokens: Tokens) -> Sequence[Output]:
        drawn = {
            number: calls.EOS if number in self._live and token in self._live[number].stop_token_ids else token
            for number, token in tokens.items()
        }
        outputs = []
        for number, token, ended in calls.come_back(self._scheduler, step.own, drawn):
            if number in self._live:
                end: Ended = "stop" if token == calls.EOS else "length"
                outputs.append(Output(number, [tokens[number]], end if ended else ""))
            if ended:
                self._live.pop(number, None)
        return outputs

    def pages(self) -> Accounting:
        table, size = self._scheduler.engine.page_table, self._scheduler.cache_manager.page_size
        waiting = self._scheduler.prefill_manager.pending_list
        unseen = [message.number for message in self._messages if isinstance(message, Request)]
        return Accounting(
            free=calls.free_pages(self._scheduler),
            cached=[page for pages, references in calls.nodes_of(self._scheduler) if not references for page in pages],
            owned={
                number: calls.pages_at(table[each.table_idx, : each.cached_len].tolist(), size)
                for number, each in sorted(self._holding.items())
            },
            requests=sorted({*self._holding, *(each.uid for each in waiting), *unseen}),
            free_slots=self._scheduler.table_manager.available_size,
        )

    @classmethod
    def script_of(cls, call: Call) -> str:
        match call:
            case Made(settings=settings):
                return f"{source_of(calls)}\n\nscheduler = scheduler_of({written(_facts(settings))})"
            case Submit(request=request):
                return f"send(scheduler, {written(_wishes(request))})"
            case Abort(request=request):
                return f"abort(scheduler, {request})"
            case Schedule(number=number):
                return f"step_{number}, rows = next_step(scheduler) or (None, [])\nprint(*rows, sep='\\n')"
            case Apply(number=number, tokens=tokens):
                return f'print("told:", come_back(scheduler, step_{number}, {dict(tokens)}))'
            case _:
                return "show(scheduler)"


def _facts(settings: Settings) -> dict[str, Any]:
    """What `scheduler_of` takes."""
    return {
        "num_pages": settings.num_pages,
        "page_size": settings.page_size,
        # A step that decodes keeps to the number of requests only.
        "max_running": min(settings.max_running, settings.max_step_tokens),
        "max_step_tokens": settings.max_step_tokens,
        "max_context": settings.max_context,
        "prefix_caching": settings.prefix_caching,
    }


def _wishes(request: Request) -> dict[str, Any]:
    """What `send` takes."""
    return {
        "number": request.number,
        "prompt": [*request.prompt],
        "max_new_tokens": request.max_new_tokens,
        "ignore_eos": not request.stop_token_ids,
    }
