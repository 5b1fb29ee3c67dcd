"""nano-vllm's scheduler as a subject. It always has a prefix cache and chunks of prompts, knows no aborts, and runs one
step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pawl.testing.subject.adapters.writing import source_of, written
from pawl.testing.subject.port import (
    Accounting,
    Apply,
    Call,
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
    from pawl.testing.subject.adapters import nano_vllm_calls as calls
except ImportError as error:
    raise ImportError(
        f"nano-vllm cannot be imported by this Python ({error}). Put its checkout on PYTHONPATH, and install xxhash, "
        f"numpy and transformers beside Pawl: see docs/subjects.md"
    ) from error


class NanoVllmScheduler(Subject):
    """`nanovllm.engine.scheduler.Scheduler`."""

    offers: ClassVar[Offers] = Offers(
        # Of one token pages it never takes a second one: `len(seq) % block_size == 1` is never true.
        page_sizes=(2, 4),
        prefix_caching=(True,),
        chunked_prefill=(True,),
        step_tokens=True,
        aborts=False,
    )

    def __init__(self, settings: Settings) -> None:
        self._scheduler = calls.scheduler_of(**_facts(settings))
        self._asked: dict[int, Any] = {}
        self._numbers: dict[Any, int] = {}

    def submit(self, request: Request) -> None:
        asked = calls.request_of([*request.prompt], request.max_new_tokens)
        self._asked[request.number], self._numbers[asked] = asked, request.number
        self._scheduler.add(asked)

    def schedule(self) -> Step | None:
        if self._scheduler.is_finished():
            return None
        before = list(self._scheduler.running)
        step = self._scheduler.schedule()
        segments = [self._segment(each, is_prefill=step[1]) for each in step[0]]
        preempted = [self._numbers[each] for each in before if not each.block_table]
        return Step(segments, sorted(preempted), step)

    def _segment(self, asked: Any, *, is_prefill: bool) -> Segment:
        start = asked.num_cached_tokens if is_prefill else len(asked) - 1
        return Segment(self._numbers[asked], start, asked.num_scheduled_tokens, tuple(asked.block_table))

    def apply(self, step: Step, tokens: Tokens) -> Sequence[Output]:
        drawn = {self._asked[number]: token for number, token in tokens.items()}
        told = calls.told_by(self._scheduler, step.own, drawn)
        return [
            Output(self._numbers[each], new, "length" if ended else "") for each, new, ended in told if new or ended
        ]

    def pages(self) -> Accounting:
        manager = self._scheduler.block_manager
        free = [*manager.free_block_ids]
        found = {block for block in free if manager.hash_to_block_id.get(manager.blocks[block].hash, -1) == block}
        live = [*self._scheduler.waiting, *self._scheduler.running]
        return Accounting(
            free=[block for block in free if block not in found],
            cached=[block for block in free if block in found],
            owned={number: [*each.block_table] for number, each in self._asked.items() if each.block_table},
            references={block.block_id: block.ref_count for block in manager.blocks},
            requests=sorted(self._numbers[each] for each in live),
        )

    @classmethod
    def script_of(cls, call: Call) -> str:
        match call:
            case Made(settings=settings):
                return f"{source_of(calls)}\n\nscheduler = scheduler_of({written(_facts(settings))})"
            case Submit(request=request):
                made = f"request_of({[*request.prompt]}, {request.max_new_tokens})"
                return f"request_{request.number} = {made}\nscheduler.add(request_{request.number})"
            case Schedule(number=number):
                return f"step_{number} = scheduler.schedule()\nshow_step(step_{number})"
            case Apply(number=number, tokens=tokens):
                drawn = ", ".join(f"request_{request}: {token}" for request, token in tokens.items())
                told = f"told_by(scheduler, step_{number}, {{{drawn}}})"
                return f'print("told:", [(new, ended) for _, new, ended in {told}])'
            case _:
                return "show(scheduler)"


def _facts(settings: Settings) -> dict[str, int]:
    return {
        "num_pages": settings.num_pages,
        "page_size": settings.page_size,
        # Decoding keeps to the number of requests only.
        "max_running": min(settings.max_running, settings.max_step_tokens),
        "max_step_tokens": settings.max_step_tokens,
    }
