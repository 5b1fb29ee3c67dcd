"""How an engine under measurement talks to `benchmarks.cpu`: a JSON object a line, asked on stdin, answered on stdout.

Engines stay loaded in processes of their own, in environments of their own, and take turns; so this file may use
nothing but the standard library.

    -> first line     {"name": "vLLM 0.32.0"}                         loaded, ready
    <- each question  {"prompts": [[504, ...], ...], "num_output": 128}
    -> each answer    {"seconds": 1.93, "first_tokens": [260, ...]}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TypeAlias

Generate: TypeAlias = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts (token ids) and a number of output tokens to exactly that many greedy tokens for each prompt."""


def answer_questions(load: Callable[[], tuple[str, Generate]]) -> None:
    """Load an engine, then answer until stdin ends. `load` gives the engine's name with version, and its `Generate`.

    Only `generate` is timed, not the pipe. Raises AssertionError when an answer is not as long as was asked.
    """
    # What libraries print goes to stderr: stdout is for answers alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, generate = load()
    print(json.dumps({"name": name}), file=answers)
    for line in sys.stdin:
        question = json.loads(line)
        prompts, num_output = question["prompts"], question["num_output"]
        began = time.perf_counter()
        outputs = generate(prompts, num_output)
        seconds = time.perf_counter() - began
        lengths = [len(output) for output in outputs]
        if lengths != [num_output] * len(prompts):
            raise AssertionError(f"{name} was asked for {num_output} tokens for each prompt and gave {lengths}")
        print(json.dumps({"seconds": seconds, "first_tokens": [output[0] for output in outputs]}), file=answers)
