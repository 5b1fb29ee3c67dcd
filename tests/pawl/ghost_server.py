"""The whole server with a ghost in place of the model: real sockets, real actors, real scheduling, no arithmetic."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from actors.recorder import Recorder
from actors.text.vocabulary import Vocabulary
from gpu.kv import MemoryPlan
from gpu.weights.source import resolve_source
from lifecycle.records import Started
from lifecycle.trace import TraceWriter
from loops.select import LoopConfig
from pawl.assembly import Parts
from pawl.config import build_config
from pawl.http.server import EngineServer, open_socket
from tests.loops.ghost import Ghost

PATIENCE_S = 60.0


def ghost_parts(loop_config: LoopConfig, trace_dir: Path) -> Parts:
    """Parts with SmolLM2's vocabulary and a ghost runner."""
    source = resolve_source("smollm2")
    writer = TraceWriter(trace_dir, 64 << 20)
    ghost: Any = Ghost(
        num_pages=loop_config.num_pages,
        page_size=loop_config.page_size,
        num_slots=loop_config.max_running,
        max_context=loop_config.max_context,
    )
    return Parts(
        source=source,
        model=source.config,
        vocabulary=Vocabulary.load(source.path),
        runner=ghost,
        loop_config=loop_config,
        plan=MemoryPlan(loop_config.num_pages, loop_config.page_size, 1),
        recorder=Recorder(writer),
        trace_path=writer.path,
        started=Started(
            version="test",
            model="ghost",
            config={},
            num_pages=loop_config.num_pages,
            page_size=loop_config.page_size,
            num_slots=loop_config.max_running,
            seed=0,
            time=time.monotonic(),
            wall=time.time(),
        ),
        summary={"model": "ghost"},
    )


@contextmanager
def ghost_server(parts: Parts, **settings: Any) -> Iterator[tuple[str, int]]:
    """Host and port of a running server of `parts`; stopped in order, trace closed, when the block ends."""
    config = build_config({"port": 0, **settings})
    ready = threading.Event()
    listener = open_socket(config.host, config.port)
    server = EngineServer(config, parts)

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.run(listener, lambda url: ready.set()))

    thread = threading.Thread(target=run, name="ghost-server")
    thread.start()
    try:
        assert ready.wait(PATIENCE_S), "the server did not start"
        yield listener.getsockname()[:2]
    finally:
        server.stop("test over")
        thread.join(PATIENCE_S)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"
