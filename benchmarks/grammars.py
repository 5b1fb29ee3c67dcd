"""What grammars cost: decode steps of 32 requests with a JSON Schema each, against the same without, in turns.

    python -m benchmarks.grammars [--rounds N] [--steps N] [--backend xgrammar]

Processor time of this process, all threads together: other programs disturb it less than they do a clock. A round is so
many steps of each kind; what is told is the median over rounds, the range, and what is spent in masks alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import msgspec
import numpy as np
import torch

from pawl.actors.text.vocabulary import Vocabulary
from pawl.build.grammars import make_grammars
from pawl.gpu.grammars.rows import GrammarRows
from pawl.gpu.runner import Runner
from pawl.gpu.weights.source import load_weights, resolve_source
from pawl.lifecycle.grammar import Grammar, GrammarKind
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import SlotAssignment, StepBatch

ROWS, PAGE_SIZE, PROMPT = 32, 16, "Write a record of a person as JSON."
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"type": "string"}},
        "address": {"type": "object", "properties": {"city": {"type": "string"}, "zip": {"type": "string"}}},
    },
    "required": ["name", "age", "tags", "address"],
}
SCHEMA = {"type": "array", "items": ITEM, "minItems": 50}
"""Long enough that no output ends."""


class Decoding:
    """32 requests on their way, one token a step."""

    def __init__(self, runner: Runner, prompt: list[int], sampling: SamplingParameters, steps: int) -> None:
        self._runner = runner
        pages = -(-(len(prompt) + steps + 1) // PAGE_SIZE)
        slots = np.arange(ROWS, dtype=np.int32)
        none = np.zeros(0, np.int32)
        history = np.array(prompt, np.int32)
        ones, yes = np.ones(ROWS, np.int32), np.ones(ROWS, np.bool_)
        self._chained = StepBatch(1, slots, slots, ones, none, yes, yes, none, none, none)
        self._first = StepBatch(
            step=1,
            slots=slots,
            starts=np.zeros(ROWS, np.int32),
            lengths=np.full(ROWS, len(prompt), np.int32),
            tokens=np.tile(history, ROWS),
            chained=np.zeros(ROWS, np.bool_),
            samples=np.ones(ROWS, np.bool_),
            page_slots=np.repeat(slots, pages),
            page_indices=np.tile(np.arange(pages, dtype=np.int32), ROWS),
            pages=np.arange(ROWS * pages, dtype=np.int32),
            admitted=tuple(SlotAssignment(slot, sampling, len(prompt), history, 0) for slot in range(ROWS)),
        )
        self._length = len(prompt)

    def run(self, steps: int) -> float:
        """Processor seconds of so many decode steps."""
        runner = self._runner
        runner.reset()
        runner.collect(runner.launch(self._first))
        began = time.process_time()
        for step in range(steps):
            starts = np.full(ROWS, self._length + step, np.int32)
            result = runner.collect(runner.launch(msgspec.structs.replace(self._chained, step=step + 2, starts=starts)))
            assert result.refused is None
        return time.process_time() - began


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--backend", default="xgrammar")
    arguments = parser.parse_args()
    source = resolve_source("smollm2")
    vocabulary = Vocabulary.load(source.path, source.config.vocab_size)
    grammars = make_grammars(arguments.backend, vocabulary)
    assert grammars is not None
    runner = Runner(
        source.config,
        load_weights(source, torch.bfloat16),
        num_pages=ROWS * 8,
        page_size=PAGE_SIZE,
        num_slots=ROWS,
        max_context=128,
        grammars=grammars,
    )
    prompt = vocabulary.encode(PROMPT).tolist()
    grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0.0},
        "greedy, grammar": {"temperature": 0.0, "grammar": grammar},
        "sampled": {"temperature": 0.8},
        "sampled, grammar": {"temperature": 0.8, "grammar": grammar},
    }
    ends = vocabulary.eos_ids
    runs = {
        name: Decoding(
            runner,
            prompt,
            SamplingParameters(seed=1, max_new_tokens=99, eos_token_ids=ends, stop_token_ids=ends, **fields),
            arguments.steps,
        )
        for name, fields in kinds.items()
    }
    for run in runs.values():
        run.run(2)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            taken[name].append(1000 * run.run(arguments.steps) / arguments.steps)
    for name, times in taken.items():
        middle = f"{statistics.median(times):8.2f} ms of processor time a step"
        print(f"{name:20} {middle}  ({min(times):.2f} to {max(times):.2f})")
    for kind in ("greedy", "sampled"):
        least, with_grammar = min(taken[kind]), min(taken[f"{kind}, grammar"])
        print(f"{kind}: {100 * (with_grammar / least - 1):+.1f} % with a grammar in every row, by the least of each")
    _masks_alone(grammars, grammar, prompt, ends)


def _masks_alone(grammars: Any, grammar: Grammar, prompt: list[int], ends: tuple[int, ...]) -> None:
    rows = GrammarRows(grammars, ROWS)
    sampling = SamplingParameters(eos_token_ids=ends, stop_token_ids=ends, grammar=grammar)
    history = np.array(prompt, np.int32)
    rows.admit([SlotAssignment(slot, sampling, len(prompt), history, 0) for slot in range(ROWS)])
    slots, count = np.arange(ROWS, dtype=np.int32), 200
    began = time.process_time()
    for _ in range(count):
        rows.masks(slots)
    print(f"masks of {ROWS} rows: {1e6 * (time.process_time() - began) / count:.0f} us")


if __name__ == "__main__":
    main()
