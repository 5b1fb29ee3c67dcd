"""This engine, as `benchmarks.cpu` asks its peers: `python -m benchmarks.peers_pawl BACKEND WEIGHTS`.

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


def main(backend: str, weights: str) -> None:
    """Answer on stdout with the engine's defaults but for `backend` and `weights` (`bf16` or `stored`)."""
    configure_logs(log_level="warning")
    with tempfile.TemporaryDirectory() as traces:
        settings = {"backend": backend, "weights": weights, "trace_dir": traces}
        with Engine(build_config(settings)) as engine:
            answer_questions(lambda: (f"Pawl {__version__} ({engine.parts.runner.backend.name})", asked(engine)))


def asked(engine: Engine) -> Generate:
    """Greedy answers of one length from `engine`."""

    def generate(prompts: list[list[int]], num_output: int) -> list[list[int]]:
        sampling = {"temperature": 0.0, "max_new_tokens": num_output, "ignore_eos": True}
        return [list(completion.tokens) for completion in engine.generate(prompts, sampling)]

    return generate


if __name__ == "__main__":
    main(*sys.argv[1:])
