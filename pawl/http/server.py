"""Running the application on a socket: uvicorn on uvloop, and an orderly end.

On the first signal to end (SIGTERM, SIGINT, SIGHUP, SIGQUIT) the server stops accepting, the engine ends what is open
(each stream gets its terminal event), and only then connections are closed. A second one is asked whether it is meant,
a third does not wait. SIGUSR1 logs the state.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import structlog
import uvicorn
import uvloop

from pawl import __version__
from pawl.actors.control.state import STATE, GetState
from pawl.actors.gateway import Gateway
from pawl.actors.messages.control import Reply
from pawl.actors.sampling import Limits
from pawl.config import ServerConfig, of_server
from pawl.gpu.heap import give_back_memory, resident_bytes
from pawl.gpu.weights.report import Report, unheard
from pawl.http.app import create_app, guards
from pawl.http.connections import Connection, ConnectionLimits
from pawl.http.freed import Freed
from pawl.http.guard import LOOPBACK, is_loopback
from pawl.http.info import ServerInfo, settled
from pawl.http.starting import Front
from pawl.parsers import reader
from pawl.parsers import reasoning as marks

if TYPE_CHECKING:
    from pawl.build.parts import Parts
    from pawl.build.replica_process import ReplicaProcess
    from pawl.engine import Engine
    from pawl.gpu.step_runner import Abilities

    OnReady: TypeAlias = Callable[[str, Abilities], None]

log = structlog.get_logger("pawl.http")

DRAIN_GRACE_S = 3.0
"""What running requests get to finish after the first signal."""
CLOSING_S = 5
"""And then connections, to take their last bytes."""
KEEP_ALIVE_S = 30
TICKS_PER_LOOK = 10
"""uvicorn ticks ten times a second."""
SWITCH_S = 0.0005
"""After which a thread that computes in Python lets another one have the interpreter: a token passes four threads on
its way to a client, and may wait at each for one that does something long for another client."""
INSISTS = 3
"""The signal that ends the server without waiting for what is open."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Server(uvicorn.Server):
    """uvicorn, with our own handling of signals and of the end."""

    def __init__(self, app: Any, gateway: Gateway | None, grace_s: float = DRAIN_GRACE_S) -> None:
        self.limits = ConnectionLimits()
        """Of connections, and what was cut for them."""
        config = uvicorn.Config(
            app,
            http=cast(Any, functools.partial(Connection, self.limits)),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(grace_s) + CLOSING_S,
        )
        super().__init__(config)
        self.gateway = gateway
        """What is drained at the end; None while there is no engine yet."""
        self._grace_s = grace_s
        self._num_stops = 0
        self._freed = Freed()
        self.listening = asyncio.Event()
        """Set once connections are accepted."""

    def stop(self, why: str) -> None:
        """Begin the end, or, the third time, do not wait for it. Called on the event loop."""
        self._num_stops += 1
        self.should_exit = True
        if self._num_stops >= INSISTS:
            self.force_exit = True
            log.info("stopping at once", why=why)
        elif self._num_stops == 1:
            log.info("stopping", why=why)
        else:
            log.info("stopping already; once more ends what is open without waiting", why=why)

    def dump(self) -> None:
        """Log what the scheduler says of itself."""
        if self.gateway is None:
            log.info("state", ok=False, message="the model is loading")
        else:
            STATE.put(self.gateway, GetState(), self._tell_state)

    @staticmethod
    def _tell_state(reply: Reply) -> None:
        log.info("state", ok=reply.ok, message=reply.message, **reply.body)

    async def on_tick(self, counter: int) -> bool:
        """Look at the connections now and then; True ends the server."""
        if counter % TICKS_PER_LOOK == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                cast(Connection, connection).look(now)
            if self.gateway is not None and self._freed.is_due(self.gateway.num_live, resident_bytes()):
                await asyncio.to_thread(give_back_memory)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals stop the server and nothing else: unlike uvicorn's own, they are not raised again at the end, so that
        the engine can be stopped after it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in ENDING:
            loop.add_signal_handler(number, self.stop, number.name)
        loop.add_signal_handler(signal.SIGUSR1, self.dump)
        try:
            yield
        finally:
            for number in (*ENDING, signal.SIGUSR1):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.gateway is not None:
            self.gateway.drain(self._grace_s)
        await super().shutdown(sockets)


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one, host :: is every interface of IPv6 and IPv4. Raises OSError when the
    address is in use or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=both)


class _ToStructlog(logging.Handler):
    """Passes on what uvicorn logs."""

    def emit(self, record: logging.LogRecord) -> None:
        log.log(record.levelno, record.getMessage(), exc_info=record.exc_info)


@contextlib.contextmanager
def uvicorn_logs() -> Iterator[None]:
    """Warnings and errors of uvicorn go where all our logs go."""
    logger, handler = logging.getLogger("uvicorn"), _ToStructlog()
    before = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate, logger.level = before


class EngineServer:
    """An engine and the server in front of it, from the first byte of the model to the last of a reply."""

    def __init__(self, config: ServerConfig, load: Callable[[Report], Parts] | None = None) -> None:
        """`load` makes the engine's parts and reports how far it is; otherwise the settings say what is loaded."""
        self._config = config = of_server(config)
        self._load = load
        self._front = Front(guards(self._hosts(), _words(config.cors_origins)))
        self._server = Server(self._front, None)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, listener: socket.socket, on_ready: OnReady | None, report: Report = unheard) -> int:
        """Load and serve until a signal comes or the engine fails; returns the exit status.

        Raises what loading raises. `report` is called by the thread that loads.
        """
        self._loop = asyncio.get_running_loop()
        serving = asyncio.ensure_future(self._server.serve([listener]))
        engine = None
        try:
            engine = await self._loaded(serving, report)
            if engine is not None:
                engine.start(self._loop)
                from pawl.build.lora import load_adapters  # not before the port answers

                adapters = asyncio.ensure_future(load_adapters(engine.gateway, self._config))
                await asyncio.wait({adapters, serving}, return_when=asyncio.FIRST_COMPLETED)
                if adapters.done():
                    adapters.result()
                    if not self._server.should_exit:  # else its socket may be closed
                        self._open(engine, listener, on_ready)
                else:
                    adapters.cancel()
            await serving
        finally:
            self._server.should_exit = True
            self._loop = None
            await serving
            if engine is not None:
                # The gateway lives on this loop, which must go on turning while the engine stops.
                await asyncio.to_thread(engine.stop)
        return 0 if engine is None or engine.failure is None else 1

    async def _loaded(self, serving: asyncio.Future[None], report: Report) -> Engine | None:
        """The engine, made in a thread; None when the server is stopped before it is there."""
        loop, made = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def hear(share: float) -> None:
            self._front.loaded = share
            report(share)

        def settle(engine: Engine | None, error: Exception | None) -> None:
            if not made.done():
                made.set_exception(error) if error is not None else made.set_result(engine)

        def make() -> None:
            engine, failure = None, None
            try:
                engine = self._engine(hear)
            except Exception as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, engine, failure)

        # A daemon: a signal while a model is loading ends the process without waiting for it.
        threading.Thread(target=make, name="loading", daemon=True).start()
        await asyncio.wait({made, serving}, return_when=asyncio.FIRST_COMPLETED)
        return await made if made.done() else None

    def _engine(self, report: Report) -> Engine:
        # Imported here because numpy and the actors come with it: the port answers before that.
        from pawl.build.loading import load
        from pawl.engine import Engine

        parts = self._load(report) if self._load is not None else load(self._config, report)
        engine = Engine(self._config, on_failure=self._engine_failed, parts=parts)
        gc.collect()  # nothing else runs meanwhile: the watchdog, once it is started, would say so
        return engine

    def _open(self, engine: Engine, listener: socket.socket, on_ready: OnReady | None) -> None:
        """Let the application of the engine, which runs, answer from now on."""
        self._server.gateway = engine.gateway
        self._front.application = create_app(
            engine.gateway,
            self._info(engine.parts),
            engine.parts.vocabulary,
            api_key=self._config.api_key,
            admin_api_key=self._config.admin_api_key,
            max_body_bytes=int(self._config.max_body_mb * (1 << 20)),
            statistics=engine.system.statistics,
            homes=engine.replicas.homes,
            hosts=self._hosts(),
            origins=_words(self._config.cors_origins),
            cut=self._server.limits.cut,
        )
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        gc.freeze()  # what is loaded stays, and need not be looked at each time that garbage is collected
        if on_ready is not None:
            on_ready(url, engine.parts.abilities)
        log.info("serving", url=url, **engine.parts.summary)

    def stop(self, why: str) -> None:
        """Begin the orderly end that a signal begins. From any thread; nothing happens before `run` and after it."""
        if (loop := self._loop) is not None:
            loop.call_soon_threadsafe(self._server.stop, why)

    def _engine_failed(self, name: str, error: BaseException) -> None:
        """Called in the failed actor's thread."""
        self.stop(f"{name} failed: {type(error).__name__}")

    def _hosts(self) -> set[str] | None:
        """Names that this server answers to; None is any. On the loopback address a web page could otherwise give its
        own name this machine's address."""
        named = _words(self._config.allowed_hosts)
        if not is_loopback(self._config.host):
            return named or None
        return {*LOOPBACK, self._config.host, *named}

    def _info(self, parts: Parts | ReplicaProcess) -> ServerInfo:
        config = self._config
        templates = parts.vocabulary.chat_templates
        tools, reasoning = config.tool_call_parser, config.reasoning_parser
        tool_format = reader.format_of(templates) if tools == "auto" else tools
        reasoning_format = {"auto": marks.format_of(templates), "none": None}.get(reasoning, reasoning)
        loop = parts.loop_config
        chosen = parts.summary | {
            "prefill_chunk": loop.prefill_chunk,
            "cache_core": loop.cache_core,
            "hybrid_pools": "off" if loop.num_window_pages is None else "on",
            "tool_call_parser": tool_format,
            "reasoning_parser": reasoning_format,
        }
        return ServerInfo(
            model_name=config.served_model_name[0] if config.served_model_name else parts.source.name,
            model_path=str(parts.source.path),
            aliases=(*config.served_model_name[1:], config.model, parts.source.name),
            limits=Limits.of(parts.vocabulary, parts.loop_config.max_context, parts.abilities),
            version=__version__,
            created=int(time.time()),
            startup_s=parts.summary["load_s"],
            num_kv_tokens=parts.loop_config.num_pages * parts.loop_config.page_size,
            weight_version=config.weight_version,
            max_loaded_adapters=parts.loop_config.max_loaded_loras if parts.loop_config.max_loras else 0,
            request_timeout_s=config.request_timeout_s,
            settings=settled(config, chosen),
            tool_format=tool_format,
            reasoning_format=reasoning_format,
        )


def _words(text: str | None) -> set[str]:
    return set((text or "").replace(",", " ").split())


def serve(config: ServerConfig, on_ready: OnReady | None = None, report: Report = unheard) -> int:
    """Load the model, serve it until a signal comes, and return the exit status: 1 when the engine failed.

    `report` hears how far loading is, `on_ready(url, abilities)` is called when requests are taken. Raises OSError when
    the address cannot be had, before anything is loaded, and what `Engine` raises.
    """
    sys.setswitchinterval(SWITCH_S)
    with uvicorn_logs(), open_socket(config.host, config.port) as listener:
        server = EngineServer(config)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(server.run(listener, on_ready, report))
