"""The engine: every part put together, for the server and for offline use.

    with Engine(config) as engine:
        for completion in engine.generate(["The capital of France is"], {"max_new_tokens": 8}):
            print(completion.text)

Actors and who sends to whom:

    gateway ─► tokenizer ─► scheduler ─► worker            recorder ◄─ scheduler
       ▲                      │    ▲        │              watchdog ─► scheduler, gateway
       └───── detokenizer ◄───┘    └────────┘              storage  ◄► scheduler, worker
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
import structlog

from pawl.actors.detokenizer import Detokenizer
from pawl.actors.gateway import Gateway
from pawl.actors.messages.generate import Done, Submit, TextOptions
from pawl.actors.runtime.actor import Overflow
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.scheduler import Scheduler
from pawl.actors.sink import Delta, Inbox
from pawl.actors.tokenizer import Limits, Tokenizer
from pawl.actors.watchdog import Watchdog
from pawl.actors.worker import Worker
from pawl.build.parts import Parts
from pawl.config import ServerConfig
from pawl.lifecycle.states import ABORT_CAUSES, Cause
from pawl.logs import ensure_logs

log = structlog.get_logger("pawl.engine")

STOP_ORDER = ("tokenizer", "scheduler", "worker", "storage", "detokenizer", "gateway", "watchdog", "recorder")
"""Upstream first, so that everything under way is answered before its answerer goes; the trace ends last."""
T = TypeVar("T")


class EngineFailed(Exception):
    """An actor failed for good; every open request has had its terminal reply."""

    def __init__(self, actor: str, reason: str) -> None:
        super().__init__(f"{actor}: {reason}")
        self.actor = actor
        self.reason = reason


class RequestFailed(Exception):
    """A request ended without success. `cause` is its abort cause."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(f"{cause}: {message}" if message else str(cause))
        self.cause = cause
        self.message = message


class Completion:
    """The whole answer to one prompt."""

    def __init__(self, delta: Delta) -> None:
        if delta.done is None:
            raise ValueError("a completion is made from a request's last delta")
        self.text = delta.text
        self.tokens = delta.tokens
        self.logprobs = delta.logprobs
        self.prompt_logprobs = delta.prompt_logprobs
        self.done: Done = delta.done

    @property
    def finish_reason(self) -> str:
        """The cause's name: `length`, `eos`, `stop_token` or `stop_string`."""
        return str(self.done.cause)


class Engine:
    """Loads at construction; serves between `start` and `stop`.

    With `loop` the gateway lives on that event loop (a server's). Without it the engine keeps a loop of its own in a
    thread, and `generate` and `stream` may be called from any other thread.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        on_failure: Callable[[str, BaseException], None] | None = None,
        parts: Parts | None = None,
    ) -> None:
        """`parts` replaces what the configuration would load, for a runner or a vocabulary of one's own."""
        ensure_logs(config.log_format, config.log_level)
        self.config = config
        self.parts: Parts = parts if parts is not None else _load(config)
        traced = self.parts.recorder is not None
        self.gateway = Gateway(limit=config.max_running + config.max_queued, traced=traced)
        self.system = LocalSystem(self.parts.loop_config.seed, on_failure=self._failed)
        self.failure: EngineFailed | None = None
        self._on_failure = on_failure
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._own_thread: threading.Thread | None = None

    # ---- life ----

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> Engine:
        """Run the actors. Returns at once."""
        if loop is None:
            loop = self._own_loop = asyncio.new_event_loop()
        parts, spawn = self.parts, self.system.spawn
        started = parts.started if parts.recorder is not None else None
        scheduler = Scheduler(parts.loop_config, self.config.request_timeout_s, started)
        # Past the tokenizer a full mailbox holds its sender back: what was accepted is never thrown away half-way.
        spawn(self.gateway, "gateway", loop=loop, overflow=Overflow.HOLD)
        spawn(Tokenizer(parts.vocabulary, Limits(parts.loop_config.max_context)), "tokenizer")
        spawn(scheduler, "scheduler", capacity=max(1024, self.config.max_queued))
        spawn(Worker(parts.runner), "worker", overflow=Overflow.HOLD)
        spawn(Detokenizer(parts.vocabulary), "detokenizer", overflow=Overflow.HOLD, capacity=4096)
        spawn(Watchdog(), "watchdog")
        absent = {"gateway"}
        if parts.recorder is not None:
            spawn(parts.recorder, "recorder", capacity=65_536)
        else:
            absent.add("recorder")
        if parts.storage is not None:
            spawn(parts.storage, "storage")
        else:
            absent.add("storage")
        for name in STOP_ORDER:
            if name not in absent:
                self.system.watch("gateway", name)
        if self._own_loop is not None:
            # Not before: a thread that runs would keep the process alive when something above fails.
            self._own_thread = threading.Thread(target=loop.run_forever, name="pawl-gateway")
            self._own_thread.start()
        self.system.start()
        if self._own_loop is not None:
            log.info("engine started", **parts.summary)
        return self

    def stop(self, timeout_s: float = 10.0) -> None:
        """Answer everything that is open, close the trace, end all threads. May be called twice."""
        late = self.system.stop(STOP_ORDER, timeout_s)
        if late:
            log.error("actors did not stop in time", actors=late)
        if self._own_loop is not None and self._own_thread is not None:
            self._own_loop.call_soon_threadsafe(self._own_loop.stop)
            self._own_thread.join(timeout_s)
            self._own_loop.close()
            self._own_loop = None

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _failed(self, name: str, error: BaseException) -> None:
        self.failure = EngineFailed(name, f"{type(error).__name__}: {error}")
        log.error("an actor failed for good", actor=name, error=str(error))
        if self._on_failure is not None:
            self._on_failure(name, error)

    # ---- offline use ----

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        *,
        stop: Sequence[str] = (),
        on_done: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Answer all prompts (text or token ids), in their order. Raises RequestFailed for the first that fails.

        `sampling` is one set of fields of SamplingParameters for all prompts, or one for each.
        """
        count = len(prompts)
        fields = [dict(sampling or {})] * count if not isinstance(sampling, Sequence) else list(sampling)
        drafts = [_draft(prompt, one, stop) for prompt, one in zip(prompts, fields, strict=True)]
        finished: queue.SimpleQueue[int] = queue.SimpleQueue()
        inboxes = [_Signal(finished, index, whole=True) for index in range(count)]
        self._on_gateway(self._submit(drafts, inboxes))
        answers: list[Completion | None] = [None] * count
        for _ in range(count):
            index = finished.get()
            delta = inboxes[index].take()
            assert delta is not None
            answers[index] = completion = _completed(delta)
            if on_done is not None:
                on_done(index, completion)
        return [answer for answer in answers if answer is not None]

    def stream(
        self,
        prompt: str | Sequence[int] | Sequence[dict[str, Any]],
        sampling: dict[str, Any] | None = None,
        *,
        stop: Sequence[str] = (),
    ) -> Iterator[Delta]:
        """Answer one prompt (text, token ids, or chat messages), delta by delta; the last has `done` set.

        Closing the iterator aborts the request. Raises RequestFailed when it fails.
        """
        changed: queue.SimpleQueue[int] = queue.SimpleQueue()
        inbox = _Signal(changed, 0)
        (number,) = self._on_gateway(self._submit([_draft(prompt, sampling or {}, stop)], [inbox]))
        try:
            while True:
                changed.get()
                # Taken on the gateway's thread: it must not be filled meanwhile.
                delta = self._on_gateway(_take(inbox))
                if delta is None:
                    continue
                if delta.final:
                    _completed(delta)
                yield delta
                if delta.final:
                    return
        finally:
            if not inbox.final:
                self._on_gateway(self._abort(number))

    async def _submit(self, drafts: Sequence[Submit], inboxes: Sequence[Inbox]) -> tuple[int, ...]:
        return self.gateway.submit(drafts, inboxes)

    async def _abort(self, request: int) -> None:
        self.gateway.abort([request], Cause.CLIENT)

    def _on_gateway(self, work: Coroutine[Any, Any, T]) -> T:
        if self._own_loop is None:
            work.close()
            raise RuntimeError("generate and stream need an engine that was started without an event loop")
        return asyncio.run_coroutine_threadsafe(work, self._own_loop).result()


def _load(config: ServerConfig) -> Parts:
    """The parts that the settings name. Imported only now, each with what it needs: a ghost starts without PyTorch."""
    if config.model == "ghost":
        from pawl.build.ghost import load_ghost

        return load_ghost(config)
    from pawl.build.assembly import load_parts

    return load_parts(config)


class _Signal(Inbox):
    """An inbox that tells a thread which request has something new."""

    def __init__(self, changed: queue.SimpleQueue[int], index: int, whole: bool = False) -> None:
        super().__init__(whole)
        self._changed = changed
        self._index = index

    def ready(self) -> None:
        self._changed.put(self._index)


async def _take(inbox: Inbox) -> Delta | None:
    return inbox.take()


def _draft(prompt: str | Sequence[Any], sampling: dict[str, Any], stop: Sequence[str]) -> Submit:
    draft = Submit(request=0, rid="", sampling=sampling, text_options=TextOptions(stop=tuple(stop)))
    if isinstance(prompt, str):
        return msgspec.structs.replace(draft, text=prompt)
    if prompt and isinstance(prompt[0], dict):
        return msgspec.structs.replace(draft, chat=tuple(prompt))
    return msgspec.structs.replace(draft, token_ids=tuple(prompt))


def _completed(delta: Delta) -> Completion:
    """The completion that ends here. Raises RequestFailed."""
    if delta.refusal is not None:
        raise RequestFailed(delta.refusal.cause, delta.refusal.message)
    if delta.done is not None and delta.done.cause in ABORT_CAUSES:
        raise RequestFailed(delta.done.cause, delta.done.message)
    return Completion(delta)
