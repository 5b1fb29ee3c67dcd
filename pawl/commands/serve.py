"""`pawl serve [MODEL]`: one model behind HTTP, until a signal comes."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from pawl.commands.failures import UsageError
from pawl.commands.node import join
from pawl.commands.settings import prepared
from pawl.commands.torchrun import launched_by
from pawl.flags import add_flags

if TYPE_CHECKING:
    from pawl.gpu.step_runner import Abilities


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, and every setting."""
    parser.add_argument(
        "model",
        nargs="?",
        default=argparse.SUPPRESS,
        metavar="MODEL",
        help="a folder, a GGUF file, a hub name, ghost (no model), or smollm2, the default, which comes with pip",
    )
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve; 0 after an orderly end, 1 when the engine failed. Of the processes that torchrun starts the first one
    serves, and the others are its nodes."""
    launched = launched_by(os.environ)
    if launched is not None:
        arguments.listen = getattr(arguments, "listen", launched.address)
    config = prepared(arguments)
    if launched is not None:
        nodes = launched.num_nodes - (not config.head_serves)
        if getattr(arguments, "nodes", nodes) != nodes:
            told = f"torchrun has started {launched.num_nodes}"
            raise UsageError(f"--nodes {arguments.nodes}: {told}{'' if config.head_serves else ' with the head'}")
        config = msgspec.structs.replace(config, nodes=nodes)
        if launched.rank > 0:
            from pawl.build.hosts.layout import NO_KEYS

            if config.keys is None:
                raise UsageError(NO_KEYS)
            return join(arguments.listen, config.keys, config.node_timeout_s, place=launched.rank - 1)
    from pawl.http.server import serve
    from pawl.logs import share_done

    with ExitStack() as loading:
        report = loading.enter_context(share_done(f"loading {config.model}"))

        def ready(url: str, abilities: Abilities) -> None:
            loading.close()
            line = curl_line(url, config.api_key is not None, only_vectors=not abilities.generates)
            print(line, file=sys.stderr, flush=True)

        return serve(config, on_ready=ready, report=report)


def curl_line(url: str, key_needed: bool, *, only_vectors: bool = False) -> str:
    """A command to paste into another terminal that shows the server works. The key itself is never printed."""
    key = ' -H "authorization: Bearer $PAWL_API_KEY"' if key_needed else ""
    route = "embeddings" if only_vectors else "completions"
    asked = '{"input": "The capital of France"}'
    body = asked if only_vectors else '{"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}'
    # Addresses that mean every interface cannot be connected to everywhere.
    reachable = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    return f"try: curl -s {reachable}/v1/{route}{key} -H 'content-type: application/json' -d '{body}'"
