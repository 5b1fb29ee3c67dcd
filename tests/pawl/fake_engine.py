"""An engine that echoes: the n-th output token is the n-th prompt token, over and over. One byte is one token.

It plays tokenizer, scheduler and detokenizer behind a real `Gateway`, on the server's event loop, one output token for
each live request in each turn. `hold` stops it after each request's first token, so that a test decides when something
happens.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, cast

import msgspec
import uvloop

from pawl.actors.control import Ask
from pawl.actors.control.state import GetLoad, GetLoads, GetState
from pawl.actors.gateway import Gateway
from pawl.actors.messages.adapters import AdaptersNamed
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import (
    Accepted,
    Done,
    Output,
    Outputs,
    Refused,
    Submit,
    Timing,
    TokenLogprob,
    Usage,
)
from pawl.actors.runtime.actor import Lane
from pawl.actors.runtime.system import ActorStatistics
from pawl.actors.sampling import Limits
from pawl.actors.text.invalid import InvalidRequest
from pawl.http.app import create_app
from pawl.http.connections import Connection
from pawl.http.info import ServerInfo
from pawl.http.server import Server, open_socket
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause
from pawl.loops.adapter import Named
from pawl.loops.orders.adapters import LoadAdapter
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.requests import Abort, Drain
from pawl.loops.recovery import FAILED_ORDER

T = TypeVar("T")

VOCABULARY_SIZE = 256
CONTEXT_LENGTH = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
END_OF_TEXT = 0
"""The token that ends a request unless end-of-text is ignored."""

END_OF_REASONING = 2
"""The one token that is a mark; its text can be written a byte at a time, too."""

INFO = ServerInfo(
    tool_format="hermes",
    reasoning_format="qwen3",
    model_name="echo",
    model_path="/models/echo",
    aliases=("parrot",),
    limits=Limits(CONTEXT_LENGTH, VOCABULARY_SIZE, (END_OF_TEXT,)),
    version="0.0",
    settings={"page_size": 16},
)
PATIENCE_S = 180.0


class Bytes:
    """A vocabulary in which one byte is one token."""

    chat_templates: ClassVar[Mapping[str, str]] = {"default": CHAT_TEMPLATE}
    bos_token = eos_token = ""
    tokenizer_class = "Bytes"
    added_tokens: ClassVar[Mapping[str, Mapping[str, str | bool]]] = {}

    def encode(self, text: str, add_special: bool = True) -> Sequence[int]:
        return [END_OF_REASONING] if text == "</think>" else list(text.encode())

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return bytes(ids).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])

    def token_text(self, token: int) -> str:
        return self.decode((token,))

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset({END_OF_TEXT})


class _Live(msgspec.Struct):
    submit: Submit
    sampling: SamplingParameters
    prompt: tuple[int, ...]
    tokens: list[int] = msgspec.field(default_factory=list)
    text: str = ""


class FakeEngine:
    """The gateway's peers and its context in one; every method but `until` runs on the event loop."""

    def __init__(self, limit: int = 64) -> None:
        self.gateway = Gateway(limit)
        self.gateway.context = self
        self.name = "gateway"
        self.held = False
        """Requests get their first token and then no more."""
        self.silent = False
        """Requests get no token at all."""
        self.mute = False
        """Answers no ask, ends no aborted request."""
        self.fails_orders = False
        self.script = ""
        """What every request says, if it is anything; it ends there."""
        self.in_reasoning = False
        """Every chat's prompt ends within the reasoning."""
        self.end_next: Cause | None = None
        """The next request ends with this before it has any token."""
        self.num_unloads = 0
        """So many of the next requests that name an adapter come when all have just been unloaded."""
        self.num_loads = 0
        self.live: dict[int, _Live] = {}
        self.seen: list[Any] = []
        """Every message the gateway sent."""
        self._turning = False
        self._changed = threading.Condition()
        self._random = random.Random(0)

    # ---- context of the gateway ----

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return 0.0

    @property
    def random(self) -> Any:
        return self._random

    def send(self, to: str, message: Any, lane: Lane = Lane.DATA) -> bool:
        asyncio.get_running_loop().call_soon(self._handle, message)
        return True

    def after(self, delay_s: float, message: Any) -> Any:
        return asyncio.get_running_loop().call_later(delay_s, self.gateway.receive, message)

    # ---- for tests ----

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait, in the test's thread, until `condition` holds; it is looked at after each message and turn."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_S), "the engine never came to that"

    def hold(self) -> None:
        self.held = True

    def load(self, order: LoadAdapter) -> None:
        """The one adapter that requests may name from now on."""
        self.num_loads += 1
        named = Named(order.name, self.num_loads, order.path, order.pinned)
        self.gateway.receive(AdaptersNamed((named,)))

    def fall_silent(self) -> None:
        self.silent = True

    def release(self) -> None:
        self.held = self.silent = False
        self._wake()

    # ---- the engine ----

    def _handle(self, message: Any) -> None:
        self.seen.append(message)
        match message:
            case Submit():
                self._submit(message)
            case Abort(requests, cause, text):
                for request in requests if not self.mute else ():
                    self._end(request, cause, text)
            case Drain(grace_s):
                asyncio.get_running_loop().call_later(grace_s, self._drain)
            case Ask(ticket) if self.fails_orders:
                self.gateway.receive(Reply(ticket, False, FAILED_ORDER))
            case Ask(ticket, GetState()) if not self.mute:
                self.gateway.receive(Reply(ticket, True, body=self._state()))
            case Ask(ticket, GetLoads() | GetLoad()) if not self.mute:
                self.gateway.receive(Reply(ticket, True, body={"loads": [self._load()]}))
            case Ask(ticket, FlushCache()) if not self.mute:
                text = "not flushed: requests are live" if self.live else "cache flushed"
                self.gateway.receive(Reply(ticket, not self.live, text, {"running": len(self.live)}))
            case Ask(ticket, LoadAdapter()) if not self.mute:
                self.load(message.message)
                self.gateway.receive(Reply(ticket, True))
            case Ask(ticket) if not self.mute:
                self.gateway.receive(Reply(ticket, True, "done"))
        self._wake()
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _submit(self, submit: Submit) -> None:
        try:
            live = self._understand(submit)
        except InvalidRequest as error:
            self.gateway.receive(Refused(submit.request, error.cause, error.message, error.status, error.param))
            return
        self.live[submit.request] = live
        prompt = live.prompt if submit.text_options.return_prompt else ()
        in_reasoning = self.in_reasoning and submit.chat is not None and bool(submit.reasoning_mark)
        self.gateway.receive(Accepted(submit.request, len(live.prompt), in_reasoning, prompt))
        cause, self.end_next = self.end_next, None
        if submit.adapter and self.num_unloads:
            self.num_unloads -= 1
            self.gateway.receive(AdaptersNamed(()))
            cause = Cause.INVALID
        if cause is not None:
            self._end(submit.request, cause, "")

    def _understand(self, submit: Submit) -> _Live:
        text = submit.text
        if submit.chat is not None:
            text = "".join(f"{message['role']}: {message.get('content')}\n" for message in submit.chat)
        prompt = submit.token_ids if submit.token_ids is not None else tuple((text or "").encode())
        if not prompt:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if not all(0 <= token < VOCABULARY_SIZE for token in prompt):
            raise InvalidRequest(f"token id {max(prompt)} is not in the vocabulary", param="prompt")
        room = CONTEXT_LENGTH - len(prompt)
        sampling = submit.sampling
        if submit.fill_context:
            sampling = msgspec.structs.replace(sampling, max_new_tokens=max(room, 0))
        if room < sampling.max_new_tokens or room <= 0:
            text = f"the context is {CONTEXT_LENGTH} tokens; max_new_tokens must be at most {room}"
            raise InvalidRequest(text, param="max_new_tokens", cause=Cause.TOO_LONG)
        return _Live(submit, sampling, prompt)

    def _wake(self) -> None:
        if not self._turning and self._runnable():
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _runnable(self) -> list[tuple[int, _Live]]:
        if self.silent:
            return []
        return [(number, live) for number, live in self.live.items() if not self.held or not live.tokens]

    def _turn(self) -> None:
        """One token for each live request, all in one message."""
        self._turning = False
        outputs = [self._step(number, live) for number, live in self._runnable()]
        for output in outputs:
            if output.done is not None:
                del self.live[output.request]
        if outputs:
            self.gateway.receive(Outputs(tuple(outputs)))
        self._wake()
        self._notify()

    def _step(self, number: int, live: _Live) -> Output:
        sampling = live.sampling
        scores: tuple[TokenLogprob, ...] = ()
        first = not live.tokens
        if sampling.max_new_tokens == 0:
            return self._output(number, live, "", (), self._done(live, Cause.LENGTH), first)
        says = (*self.script.encode(), END_OF_TEXT) if self.script else live.prompt
        token = says[len(live.tokens) % len(says)]
        live.tokens.append(token)
        if sampling.top_logprobs is not None:
            scores = (score(token, sampling.top_logprobs, sampling.token_ids_logprob),)
        cause, matched = None, None
        text = "</think>" if token == END_OF_REASONING else chr(token) if token < 128 else "\ufffd"
        if len(live.tokens) >= sampling.max_new_tokens:
            cause = Cause.LENGTH
        if token in sampling.stop_token_ids:
            cause, matched, text = Cause.EOS if token == END_OF_TEXT else Cause.STOP_TOKEN, token, ""
        for stop in live.submit.text_options.stop:
            if (live.text + text).endswith(stop):
                cause, matched, text = Cause.STOP_STRING, stop, text[: -len(stop)]
        live.text += text
        done = self._done(live, cause, matched=matched) if cause is not None else None
        return self._output(number, live, text, scores, done, first)

    def _output(
        self, number: int, live: _Live, text: str, scores: tuple[TokenLogprob, ...], done: Done | None, first: bool
    ) -> Output:
        prompt_scores: tuple[TokenLogprob, ...] = ()
        if first and live.sampling.prompt_logprobs:
            asked = live.sampling
            rest = (score(one, asked.top_logprobs or 0, asked.token_ids_logprob) for one in live.prompt[1:])
            ranked = (msgspec.structs.replace(each, rank=2) for each in rest)
            prompt_scores = (TokenLogprob(live.prompt[0], None, chr(live.prompt[0])), *ranked)
        tokens = (live.tokens[-1],) if live.tokens else ()
        return Output(number, text, tokens, scores, prompt_scores, done)

    def _done(self, live: _Live, cause: Cause, message: str = "", matched: str | int | None = None) -> Done:
        usage = Usage(len(live.prompt), len(live.tokens), 2 if len(live.prompt) > 2 else 0)
        return Done(cause, usage, Timing(1.0, 1.5, 2.0, 3.0), message, matched)

    def _end(self, request: int, cause: Cause, message: str) -> None:
        live = self.live.pop(request, None)
        if live is not None:
            done = self._done(live, cause, message)
            self.gateway.receive(Outputs((Output(request, "", (), done=done),)))

    def _drain(self) -> None:
        for request in list(self.live):
            self._end(request, Cause.DRAINED, "")

    def end(self, cause: Cause, message: str = "") -> None:
        """End everything that is live."""
        for request in list(self.live):
            self._end(request, cause, message)
        self._notify()

    def _load(self) -> dict[str, int]:
        running = len(self.live)
        return {
            "dp_rank": 0,
            "num_running_reqs": running,
            "num_waiting_reqs": 0,
            "num_total_reqs": running,
            "num_used_tokens": 160,
            "max_total_num_tokens": 1600,
        }

    def _state(self) -> dict[str, Any]:
        return {
            "requests": {"decoding": len(self.live)},
            "waiting": 0,
            "running": len(self.live),
            "in_flight": 0,
            "pages": {"total": 100, "free": 90, "owned": 10, "deferred": 0, "page_size": 16},
            "counters": {"steps": 12, "steps_lost": 0, "retractions": 3, "by_cause": {"length": 1}},
        }


def score(token: int, num_top: int, named: Sequence[int]) -> TokenLogprob:
    """Scores that can be told apart: the chosen token is the second likeliest of all."""
    rivals = [(255, -0.25), (token, logprob(token)), *((other, -50.0 - other) for other in range(1, num_top))]
    told = [*rivals[:num_top], *((other, logprob(other)) for other in named)]
    top = tuple((other, value, chr(other) if other < 128 else "\ufffd") for other, value in told)
    return TokenLogprob(token, logprob(token), chr(token) if token < 128 else "\ufffd", top)


def logprob(token: int) -> float:
    return -(token + 1) / 128


def statistics() -> dict[str, ActorStatistics]:
    """Numbers of one actor that does not exist."""
    numbers = ActorStatistics(
        alive=True,
        waiting_system=0,
        waiting_control=1,
        waiting_data=5,
        most_data=9,
        capacity=64,
        delivered=100,
        rejected=2,
        dead_letters=0,
    )
    return {"tokenizer": numbers}


class Served:
    """A real server on a free port, in a thread, with a fake engine behind it.

    with Served() as served:
        httpx.get(served.url + "/health")
    """

    def __init__(self, limit: int = 64, grace_s: float = 0.0, info: ServerInfo = INFO, **options: Any) -> None:
        self.engine = FakeEngine(limit)
        self._info = info
        self._grace_s = grace_s
        self._options = {"tokenization": Bytes(), "statistics": statistics, "probe_timeout_s": 10.0, **options}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="served")
        self._loop: asyncio.AbstractEventLoop | None = None
        self.server: Server | None = None
        self.url = ""

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = create_app(self.engine.gateway, self._info, **self._options)
        self.server = Server(app, self.engine.gateway, self._grace_s)
        with open_socket("127.0.0.1", 0) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            serving = asyncio.ensure_future(self.server.serve([listener]))
            await self.server.listening.wait()
            self._ready.set()
            await serving

    def on_loop(self, call: Callable[[], T]) -> T:
        """The result of `call`, run on the event loop."""

        async def run() -> T:
            return call()

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE_S)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", int(self.url.rsplit(":", 1)[1])

    def connections(self) -> list[Connection]:
        """Those that are open."""
        assert self.server is not None
        return [cast(Connection, each) for each in self.server.server_state.connections]

    def until(self, condition: Callable[[], bool]) -> None:
        """Turn the server's loop until this holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.on_loop(condition):
            assert time.monotonic() < deadline, "it never came to be"

    def begin_stop(self) -> None:
        server = self.server
        assert server is not None
        self.on_loop(lambda: server.stop("the test is over"))

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the server did not stop"

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.on_loop(self.engine.release)
            self.begin_stop()
        self.join()
