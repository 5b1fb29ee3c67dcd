"""llama.cpp through llama-cpp-python, as `benchmarks.cpu` asks it. Runs in its own environment.

    python -m benchmarks.peers_llama FILE.gguf                   answer questions
    python -m benchmarks.peers_llama convert FILE.gguf TARGET    the same model in bfloat16
    python -m benchmarks.peers_llama score FILE.gguf TOKENS OUT  logits after each of the tokens (.npy files)

All prompts of a question are sequences of one context and one batch, as its own batched benchmark does it; a common
beginning is computed once and its cells are shared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import llama_cpp  # type: ignore[import-not-found]
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers_protocol import Generate, answer_questions

MAX_SEQUENCES = 32
CONTEXT_CELLS = 32 * 1024
BATCH_TOKENS = 2048


class Row(NamedTuple):
    """One token of a batch."""

    token: int
    position: int
    sequence: int
    wanted: bool
    """Its logits are read."""


class Context:
    """A model, its cells, and one reusable batch."""

    def __init__(self, path: str) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = CONTEXT_CELLS
        settings.n_batch = BATCH_TOKENS
        settings.n_seq_max = MAX_SEQUENCES
        settings.n_threads = settings.n_threads_batch = len(os.sched_getaffinity(0))
        settings.kv_unified = True  # cells of a common beginning can be shared
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._num_vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, True)

    def share(self, sequence: int) -> None:
        """What sequence 0 has computed is the beginning of `sequence` too."""
        llama_cpp.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)

    def decode(self, rows: Sequence[Row]) -> dict[int, int]:
        """Compute all rows; sequence -> likeliest token, for the wanted ones."""
        drawn: dict[int, int] = {}
        for start in range(0, len(rows), BATCH_TOKENS):
            part = rows[start : start + BATCH_TOKENS]
            batch = self._batch
            batch.n_tokens = len(part)
            for index, row in enumerate(part):
                batch.token[index], batch.pos[index] = row.token, row.position
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, row.sequence
                batch.logits[index] = row.wanted
            status = llama_cpp.llama_decode(self._context, batch)
            if status != 0:
                raise RuntimeError(f"llama_decode answered {status}")
            for index, row in enumerate(part):
                if row.wanted:
                    drawn[row.sequence] = self._likeliest(index)
        return drawn

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each token of one sequence, float32 [t, vocab]; t is at most BATCH_TOKENS."""
        self.clear()
        self.decode([Row(token, position, 0, True) for position, token in enumerate(tokens)])
        return np.stack([self._logits(index).copy() for index in range(len(tokens))])

    def _likeliest(self, index: int) -> int:
        return int(self._logits(index).argmax())

    def _logits(self, index: int) -> NDArray[np.float32]:
        logits: Any = llama_cpp.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(logits, (self._num_vocabulary,))


def common_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; at least one token of each is left over."""
    if len(prompts) == 1:
        return 0
    shortest = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    return next((i for i in range(shortest) if any(prompt[i] != first[i] for prompt in prompts)), shortest)


def load() -> tuple[str, Generate]:
    """As llama.cpp chooses, with room for the largest question."""
    context = Context(sys.argv[1])

    def generate(prompts: list[list[int]], num_output: int) -> list[list[int]]:
        context.clear()
        shared = common_length(prompts)
        if shared:
            context.decode([Row(token, at, 0, False) for at, token in enumerate(prompts[0][:shared])])
            for sequence in range(1, len(prompts)):
                context.share(sequence)
        drawn = context.decode(
            [
                Row(prompt[at], at, sequence, at == len(prompt) - 1)
                for sequence, prompt in enumerate(prompts)
                for at in range(shared, len(prompt))
            ]
        )
        outputs = [[drawn[sequence]] for sequence in range(len(prompts))]
        for step in range(num_output - 1):
            drawn = context.decode(
                [Row(drawn[sequence], len(prompt) + step, sequence, True) for sequence, prompt in enumerate(prompts)]
            )
            for sequence, token in drawn.items():
                outputs[sequence].append(token)
        return outputs

    return f"llama.cpp (llama-cpp-python {llama_cpp.__version__})", generate


def convert(source: str, target: str) -> None:
    """Write `source` with its matrices in bfloat16."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_BF16
    settings.allow_requantize = True
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), settings)
    if status != 0:
        raise RuntimeError(f"llama_model_quantize answered {status}")


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(sys.argv[2], sys.argv[3])
    elif sys.argv[1] == "score":
        np.save(sys.argv[4], Context(sys.argv[2]).score(np.load(sys.argv[3]).tolist()))
    else:
        answer_questions(load)
