"""This engine, as `benchmarks.cpu` asks its peers: `python -m benchmarks.peers_pawl BACKEND`.

Everything as a user gets it, the trace included (into a folder that is thrown away).
"""

from __future__ import annotations

import sys
import tempfile

from benchmarks.peers_protocol import Generate, answer_questions
from pawl import __version__
from pawl.config import build_config
from pawl.engine import Engine
from pawl.logs import configure_logs


def main(backend: str) -> None:
    """Answer on stdout with the engine's defaults but for `backend`."""
    configure_logs(log_level="warning")
    with tempfile.TemporaryDirectory() as traces, Engine(build_config({"backend": backend, "trace_dir": traces})) as it:

        def generate(prompts: list[list[int]], num_output: int) -> list[list[int]]:
            sampling = {"temperature": 0.0, "max_new_tokens": num_output, "ignore_eos": True}
            return [list(completion.tokens) for completion in it.generate(prompts, sampling)]

        def load() -> tuple[str, Generate]:
            return f"Pawl {__version__} ({it.parts.runner.backend.name})", generate

        answer_questions(load)


if __name__ == "__main__":
    main(sys.argv[1])
