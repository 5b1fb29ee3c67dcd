"""The engine: every part put together, for the server and for offline use (which actors: `pawl.build.wiring`).

with Engine(config) as engine:
    for completion in engine.generate(["The capital of France is"], {"max_new_tokens": 8}):
        print(completion.text)
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray

from pawl.actors.control import ROWS
from pawl.actors.control.adapters import LOAD_ADAPTER, UNLOAD_ADAPTER
from pawl.actors.control_row import Answer, Row
from pawl.actors.fields import convert
from pawl.actors.gateway import Gateway
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import Submit, TextOptions
from pawl.actors.names import FRONT, NAMES
from pawl.actors.sampling import Limits, OfflineSampling, StopStrings, embedding_sampling, offline_sampling, shortened
from pawl.actors.sink import Delta, Inbox
from pawl.actors.text.invalid import InvalidRequest
from pawl.actors.unread import SHORT
from pawl.build.loading import load, load_here
from pawl.build.lora import load_adapters
from pawl.build.parts import Parts
from pawl.build.replicas import LocalReplicas, Replicas, are_routed
from pawl.build.wiring import spawn_all
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.weights.report import Report, unheard
from pawl.lifecycle.states import Cause
from pawl.logs import ensure_logs
from pawl.offline import Completion as Completion
from pawl.offline import Prompt, Signal, check_end, prompt_fields, stands_alone, take
from pawl.offline import RequestFailed as RequestFailed

if TYPE_CHECKING:
    from pawl.build.replica_process import ReplicaProcess

log = structlog.get_logger("pawl.engine")

T = TypeVar("T")


class EngineFailed(Exception):
    """An actor failed for good; every open request has had its terminal reply."""

    def __init__(self, actor: str, reason: str) -> None:
        super().__init__(f"{actor}: {reason}")
        self.actor = actor
        self.reason = reason


class NotRunning(RuntimeError):
    """The engine cannot take a request, or be started, in its present state."""


class Engine:
    """Loads at construction; serves between `start` and `stop`.

    With `loop` the gateway lives on that event loop (a server's). Without it the engine keeps a loop of its own in a
    thread, and `generate` and `stream` may be called from any other thread. An engine that nobody stops is stopped when
    the process exits. It does not live on in a forked child: threads do not.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        on_failure: Callable[[str, BaseException], None] | None = None,
        parts: Parts | Sequence[Parts] | Sequence[ReplicaProcess] | None = None,
        report: Report = unheard,
    ) -> None:
        """`parts`, of each replica, replace what the configuration would load, for a runner of one's own."""
        ensure_logs(config.log_format, config.log_level)
        self.config = config
        given: list[Any] = [parts] if isinstance(parts, Parts) else [*(parts or load(config, report))]
        self.parts: Parts | ReplicaProcess = given[0]
        loop_config = self.parts.loop_config
        self._limits = Limits.of(self.parts.vocabulary, loop_config.max_context, self.parts.abilities)
        limit, required = config.max_running + config.max_queued, config.trace_required
        front = FRONT if are_routed(config) else NAMES
        self.gateway = Gateway(limit, traced=self.parts.traced, trace_required=required, short=SHORT, names=front)
        self.failure: EngineFailed | None = None
        self._on_failure = on_failure
        self.replicas: Replicas[Any]
        if isinstance(self.parts, Parts):
            self.replicas = LocalReplicas(config, given, load_here, self._failed)
        else:
            from pawl.build.replica_processes import ProcessReplicas  # whoever runs in one process imports no ZeroMQ

            self.replicas = ProcessReplicas(config, given, self._failed)
        self.system = self.replicas.system
        self._actors = self.replicas.actors(self.gateway)
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._own_thread: threading.Thread | None = None
        self._process: int | None = None
        """The process in which the threads run, once they do."""
        self._stopped = False

    # ---- life ----

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> Engine:
        """Run the actors. Returns when the adapters of the configuration are loaded, on a loop of its own; without them
        at once. Raises NotRunning when it was started before, and ConfigError for an adapter that cannot be loaded."""
        if self._stopped or self._process is not None:
            what = "was stopped, and does not start again: make another one" if self._stopped else "was started before"
            raise NotRunning(f"this engine {what}")
        if loop is None:
            loop = self._own_loop = asyncio.new_event_loop()
        spawn_all(self.system, self._actors, loop=loop)
        self._process = os.getpid()
        atexit.register(self.stop)
        if self._own_loop is not None:
            self._own_thread = threading.Thread(target=loop.run_forever, name="pawl-gateway", daemon=True)
            self._own_thread.start()
        self.replicas.join()
        self.system.start()
        if self._own_loop is not None:
            try:
                self._on_gateway(load_adapters(self.gateway, self.config))
            except ConfigError:
                self.stop()
                raise
            log.info("engine started", **self.parts.summary)
        return self

    def stop(self, timeout_s: float = 10.0) -> None:
        """Answer everything that is open, close the trace, end all threads. May be called twice."""
        atexit.unregister(self.stop)
        self._stopped = True
        if self._process not in (None, os.getpid()):
            return  # a forked child: the threads to be stopped are the parent's
        late = self.system.stop(self.replicas.stop(), timeout_s)
        if late:
            log.error("actors did not stop in time", actors=late)
        self.replicas.close()
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
        log.error("an actor failed for good", actor=name, error=type(error).__name__)
        if self._on_failure is not None:
            self._on_failure(name, error)

    # ---- offline use ----

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
        *,
        stop: str | Sequence[str] = (),
        adapter: str | Sequence[str] = "",
        on_done: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Answer all prompts, in their order; one prompt that stands alone is a list of one. Raises RequestFailed for
        the first that fails, NotRunning outside of `start` and `stop`.

        `sampling` is one set of fields of SamplingParameters for all prompts, or one for each; `adapter` is the name of
        one that is loaded (empty: none), likewise.
        """
        asked: list[Any] = [prompts] if stands_alone(prompts) else list(prompts)
        fields = [dict(sampling or {})] * len(asked) if not isinstance(sampling, Sequence) else list(sampling)
        adapters = [adapter] * len(asked) if isinstance(adapter, str) else list(adapter)
        answers: list[Completion | None] = [None] * len(asked)
        for index, delta in self._ends(len(asked), partial(self._submit, asked, fields, stop, adapters)):
            answers[index] = completion = Completion(delta)
            if on_done is not None:
                on_done(index, completion)
        return [answer for answer in answers if answer is not None]

    def embed(self, prompts: Prompt | Sequence[Prompt], *, dimensions: int | None = None) -> list[NDArray[np.float32]]:
        """The vector of each prompt, float32 [size], or its first `dimensions` numbers; in the order of the prompts, of
        which one may stand alone. Raises as `generate` does, and RequestFailed where the model makes no vectors."""
        asked: list[Any] = [prompts] if stands_alone(prompts) else list(prompts)
        vectors: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(asked)
        for index, delta in self._ends(len(asked), partial(self._submit_embeds, asked, dimensions)):
            assert delta.embedding is not None
            vectors[index] = shortened(delta.embedding, dimensions, self._limits)
        return vectors

    def _ends(
        self, count: int, submit: Callable[[Sequence[Inbox]], Coroutine[Any, Any, object]]
    ) -> Iterator[tuple[int, Delta]]:
        """All that came of each of `count` requests, as they end. Raises RequestFailed for the first that fails."""
        finished: queue.SimpleQueue[int] = queue.SimpleQueue()
        inboxes = [Signal(finished, index, whole=True) for index in range(count)]
        self._on_gateway(submit(inboxes))
        for _ in range(count):
            index = finished.get()
            delta = inboxes[index].take()
            assert delta is not None
            check_end(delta)
            yield index, delta

    def stream(
        self,
        prompt: Prompt,
        sampling: dict[str, Any] | None = None,
        *,
        stop: str | Sequence[str] = (),
        adapter: str = "",
    ) -> Iterator[Delta]:
        """Answer one prompt, delta by delta; the last has `done` set.

        Closing the iterator aborts the request. Raises RequestFailed when it fails.
        """
        changed: queue.SimpleQueue[int] = queue.SimpleQueue()
        inbox = Signal(changed, 0)
        (number,) = self._on_gateway(self._submit([prompt], [sampling or {}], stop, [adapter], [inbox]))
        try:
            while True:
                changed.get()
                # Taken on the gateway's thread: it must not be filled meanwhile.
                delta = self._on_gateway(take(inbox))
                if delta is None:
                    continue
                if delta.final:
                    check_end(delta)
                yield delta
                if delta.final:
                    return
        finally:
            if not inbox.final:
                self._on_gateway(self._abort(number))

    def load_adapter(self, name: str, path: str, *, pinned: bool = False) -> None:
        """Load an adapter (LoRA) from its folder, for requests to name. Raises RequestFailed where it cannot be."""
        self.control(LOAD_ADAPTER.name, lora_name=name, lora_path=path, pinned=pinned)

    def unload_adapter(self, name: str) -> None:
        """Let no request name an adapter any more; returns when the last one that did has ended. Raises RequestFailed
        where there is none of this name."""
        self.control(UNLOAD_ADAPTER.name, lora_name=name)

    def control(self, name: str, **fields: Any) -> dict[str, Any]:
        """Send a control message, by the name and the fields that `pawl ctl` has for it; the body of the reply. Raises
        KeyError for a name that there is not, RequestFailed when it is refused or its fields are not valid."""
        row = next((row for row in ROWS if row.name == name and row.routes), None)
        if row is None:
            raise KeyError(f"there is no control message {name!r}")
        answers: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._on_gateway(self._steer(row, fields, answers.put))
        if not (reply := answers.get()).ok:
            raise RequestFailed(Cause.INVALID, reply.message)
        return reply.body

    def release_memory(self, tags: Sequence[str] | None = None) -> dict[str, Any]:
        """Give memory back: of `kv_cache`, `weights`, `cuda_graph`, None: of all. Raises RequestFailed if it cannot."""
        return self.control("release-memory", tags=tags)

    def resume_memory(self, tags: Sequence[str] | None = None) -> dict[str, Any]:
        """Have it again, the same weights in it and no pages. Raises RequestFailed if it cannot."""
        return self.control("resume-memory", tags=tags)

    release_memory_occupation, resume_memory_occupation = release_memory, resume_memory  # SGLang's names

    async def _steer(self, row: Row, fields: dict[str, Any], answer: Answer) -> None:
        try:
            body = convert(fields, row.taken)
        except InvalidRequest as error:
            raise RequestFailed(error.cause, error.message) from None
        row.put(self.gateway, body, answer)

    async def _submit_embeds(
        self, prompts: Sequence[Any], dimensions: int | None, inboxes: Sequence[Inbox]
    ) -> tuple[int, ...]:
        try:
            sampling = embedding_sampling(self._limits, dimensions)
        except InvalidRequest as error:
            raise RequestFailed(error.cause, error.message) from None
        submits = [Submit(request=0, rid="", **prompt_fields(prompt), sampling=sampling) for prompt in prompts]
        return self.gateway.submit(submits, inboxes)

    async def _submit(
        self,
        prompts: Sequence[Any],
        sampling: Sequence[Any],
        stop: str | Sequence[str],
        adapters: Sequence[str],
        inboxes: Sequence[Inbox],
    ) -> tuple[int, ...]:
        try:
            stops = convert([stop] if isinstance(stop, str) else list(stop), StopStrings, "stop")
            options = TextOptions(stop=tuple(stops))
            each = zip(prompts, sampling, adapters, strict=True)
            submits = [self._request(prompt, one, options, adapter) for prompt, one, adapter in each]
        except InvalidRequest as error:
            raise RequestFailed(error.cause, error.message) from None
        return self.gateway.submit(submits, inboxes)

    def _request(self, prompt: Any, sampling: Any, options: TextOptions, adapter: str) -> Submit:
        """Raises InvalidRequest."""
        fields = convert(sampling, OfflineSampling)
        return Submit(
            request=0,
            rid="",
            **prompt_fields(prompt),
            sampling=offline_sampling(fields, self._limits, self.gateway.new_seed()),
            fill_context=fields.max_new_tokens is None,
            text_options=options,
            adapter=adapter,
        )

    async def _abort(self, request: int) -> None:
        self.gateway.abort([request], Cause.CLIENT)

    def _on_gateway(self, work: Coroutine[Any, Any, T]) -> T:
        why_not = self._why_not()
        if self._own_loop is None or why_not:
            work.close()
            raise NotRunning(why_not)
        return asyncio.run_coroutine_threadsafe(work, self._own_loop).result()

    def _why_not(self) -> str:
        """Why `generate` and `stream` cannot be called now; empty when they can."""
        if self._process not in (None, os.getpid()):
            return "this process was forked from the engine's, whose threads it does not have: make an engine after it"
        if self._stopped:
            return "this engine was stopped"
        if self._process is None:
            return "this engine was not started: use it in a `with`, or call `start`"
        return "" if self._own_loop is not None else "this engine runs on a server's event loop: ask the server"
