"""vLLM's v1 scheduler, writing what it does as lines of JSON for `pawl audit`. Nothing of Pawl is imported.

    PAWL_EVENTS=run.jsonl PYTHONPATH=docs/examples vllm serve MODEL --scheduler-cls vllm_events.RecordedScheduler
    pawl audit run.jsonl

Tried with release 0.32. With `--async-scheduling` take `RecordedAsyncScheduler`.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler


class Recorded:
    """Beside a scheduler: each method says what the scheduler's own has done."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._file = open(os.environ["PAWL_EVENTS"], "w", buffering=1)  # noqa: SIM115 - as long as the scheduler lives
        self._number = 0
        self._steps: dict[int, int] = {}  # id of a SchedulerOutput in flight -> its number
        self._told: dict[str, int] = {}
        self._pool = self.kv_cache_manager.block_pool
        self._page_size = self.kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        # Block 0 is nobody's.
        self._num_pages = self._pool.num_gpu_blocks - 1
        self._say("started", scheduler="vllm", pages=self._num_pages, page_size=self._page_size)

    def add_request(self, request: Any) -> None:
        super().add_request(request)
        wishes = request.sampling_params
        end = getattr(request, "eos_token_id", None)
        self._told[request.request_id] = 0
        self._say(
            "submitted",
            request=request.request_id,
            prompt=list(request.prompt_token_ids),
            max_new_tokens=request.max_tokens,
            stop_token_ids=sorted(wishes.stop_token_ids or ()),
            eos_token_ids=[] if end is None or wishes.ignore_eos else [end],
            priority=-request.priority,
            namespace=getattr(request, "cache_salt", None) or "",
        )

    def schedule(self, *arguments: Any, **named: Any) -> Any:
        before = list(self.running)
        expected = {name: _expected(request) for name, request in self.requests.items()}
        step = super().schedule(*arguments, **named)
        for request in before:
            if request not in self.running and request.request_id in self.requests:
                # What steps in flight draw for it is told to its client all the same.
                self._say("preempted", request=request.request_id, keeps=True)
        if step.num_scheduled_tokens:
            self._number += 1
            self._steps[id(step)] = self._number
            parts = [self._part(name, count, expected[name]) for name, count in step.num_scheduled_tokens.items()]
            self._say("planned", step=self._number, segments=parts)
        return step

    def _part(self, name: str, count: int, expected: int) -> dict[str, Any]:
        end = self.requests[name].num_computed_tokens
        blocks = self.kv_cache_manager.get_block_ids(name)[0][: -(-end // self._page_size)]
        return {"request": name, "start": end - count, "count": count, "draws": end >= expected, "pages": list(blocks)}

    def update_from_output(self, step: Any, drawn: Any) -> Any:
        number = self._steps.pop(id(step), None)
        outputs = super().update_from_output(step, drawn)
        if number is not None:
            tokens = {name: list(map(int, drawn.sampled_token_ids[at])) for name, at in drawn.req_id_to_index.items()}
            self._say("committed", step=number, tokens=tokens, pages=self._pages())
        for client in outputs.values():
            for output in client.outputs:
                self._told[output.request_id] += len(output.new_token_ids)
                if output.finish_reason is not None:
                    self._ended(output.request_id, str(output.finish_reason), output.stop_reason)
        return outputs

    def _ended(self, name: str, reason: str, stop: Any) -> None:
        told = self._told.pop(name)
        if reason in ("length", "stop"):
            # A stop token is named; the model's own end is not.
            own = reason == "stop" and stop is None
            self._say("finished", request=name, reason="eos" if own else reason, told=told)
        else:
            self._say("aborted", request=name, told=told)

    def finish_requests(self, request_ids: Any, finished_status: Any, *arguments: Any) -> Any:
        names = [request_ids] if isinstance(request_ids, str) else list(request_ids or self.requests)
        live = [name for name in names if name in self.requests and name in self._told]
        result = super().finish_requests(request_ids, finished_status, *arguments)
        for name in live:
            self._say("aborted", request=name, told=self._told.pop(name))
        return result

    def shutdown(self) -> None:
        if not self._told:  # else the run was broken off, and the file says so by its end
            self._say("stopped", pages=self._pages())
        self._file.close()
        super().shutdown()

    def _pages(self) -> dict[str, int]:
        free = self._pool.get_num_free_blocks()
        return {"free": free, "owned": self._num_pages - free}

    def _say(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"event": event, "time": time.monotonic(), **fields}) + "\n")


def _expected(request: Any) -> int:
    """Positions after which a token is drawn: those that are known, and those that steps in flight draw."""
    return request.num_tokens + getattr(request, "num_output_placeholders", 0)


class RecordedScheduler(Recorded, Scheduler):
    """For `--scheduler-cls`."""


class RecordedAsyncScheduler(Recorded, AsyncScheduler):
    """The same with `--async-scheduling`."""
