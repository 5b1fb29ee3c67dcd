"""The whole server with a ghost in place of the model: real sockets, real actors, real scheduling, no arithmetic."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvloop

from pawl.actors.text.ghost import ghost_vocabulary
from pawl.build.ghost import GhostSource, load_ghost
from pawl.build.parts import Parts, assemble
from pawl.config import build_config, of_server
from pawl.gpu.ghost.runner import Ghost
from pawl.http.server import EngineServer, open_socket
from pawl.lifecycle.audit import Verdict, audit
from pawl.loops.select import LoopConfig

PATIENCE_S = 180.0


def ghost_parts(loop_config: LoopConfig, trace_dir: Path) -> Parts:
    """Those of `--model ghost`, scheduled as `loop_config` says."""
    return assemble(
        build_config({"model": "ghost", "trace_dir": str(trace_dir)}),
        source=GhostSource(),
        vocabulary=ghost_vocabulary(),
        runner=Ghost.for_shape(loop_config),
        loop_config=loop_config,
        facts={"backend": "ghost"},
        began=time.monotonic(),
    )


@contextmanager
def audited_client(folder: Path, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a ghost whose trace, in `folder`, passes the audit when the block ends."""
    settings |= {"model": "ghost", "trace_dir": str(folder)}
    with (
        ghost_server(load_ghost(of_server(build_config(settings))), **settings) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=PATIENCE_S, verify=False) as client,
    ):
        yield client
    assert audit(folder).verdict is Verdict.PASS


@contextmanager
def ghost_server(parts: Any, **settings: Any) -> Iterator[tuple[str, int]]:
    """Host and port of a running server of `parts` (of each replica, where they are several); stopped in order, traces
    closed, when the block ends."""
    config = build_config({"port": 0, **settings})
    ready = threading.Event()
    listener = open_socket(config.host, config.port)
    server = EngineServer(config, lambda report: parts)

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.run(listener, lambda url, abilities: ready.set()))

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
