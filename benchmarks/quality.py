"""What stored weights and bytes for activations cost a model: perplexity of a text, and distance to float32.

    python -m benchmarks.quality [MODEL] [TEXT]

The text, of which the first 1,024 tokens count, is this project's page on architecture unless another is named. Each
way of computing scores every token given all before it. `KL` is the divergence of its next-token distribution from that
of the same weights in float32, in nats, mean and largest over the positions; `same` the share of positions with the
same likeliest token. With PAWL_PEER_LLAMA, the interpreter of an environment with llama-cpp-python, llama.cpp computes
the same tokens from the same GGUF file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.contestants import ROOT
from pawl.actors.text.vocabulary import Vocabulary
from pawl.gpu.backend import ForwardInputs
from pawl.gpu.kv import KvStore
from pawl.gpu.native.backend import NativeBackend
from pawl.gpu.weights.blocks import Weights
from pawl.gpu.weights.source import ModelSource, load_blocks, load_weights, resolve_source

MOST_TOKENS = 1024
PAGE_SIZE = 64


def scored(source: ModelSource, weights: Weights, dtype: torch.dtype, tokens: list[int]) -> Tensor:
    """Logits after each token, float32 [t, vocab]."""
    pages = -(-len(tokens) // PAGE_SIZE)
    kv = KvStore(source.config, num_pages=pages, page_size=PAGE_SIZE, dtype=dtype, device="cpu")
    count = len(tokens)
    inputs = ForwardInputs(
        tokens=np.array(tokens, np.int32),
        positions=np.arange(count, dtype=np.int32),
        slots=np.zeros(1, np.int32),
        starts=np.zeros(1, np.int32),
        lengths=np.array([count], np.int32),
        offsets=np.array([0, count], np.int32),
        page_table=np.arange(pages, dtype=np.int32)[None],
        logit_rows=np.arange(count, dtype=np.int32),
    )
    return torch.from_numpy(NativeBackend(source.config, weights, kv).forward(inputs))


def by_llama(python: str, source: ModelSource, tokens: list[int]) -> Tensor:
    """The same by llama.cpp, from the same file."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "tokens.npy"), Path(folder, "logits.npy")
        np.save(asked, np.array(tokens, np.int32))
        command = [python, "-m", "benchmarks.peers_llama", "score", str(source.path), str(asked), str(answered)]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return torch.from_numpy(np.load(answered))


def line(name: str, logits: Tensor, exact: Tensor, tokens: list[int]) -> str:
    """One row of the table."""
    ours, theirs = logits.log_softmax(-1), exact.log_softmax(-1)
    following = torch.tensor(tokens[1:])
    perplexity = float((-ours[:-1].gather(1, following[:, None])).mean().exp())
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    same = float((logits.argmax(-1) == exact.argmax(-1)).float().mean())
    return f"| {name} | {perplexity:.3f} | {divergence.mean():.5f} | {divergence.max():.4f} | {same:.1%} |"


def main() -> None:
    source = resolve_source(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
    text = Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "docs" / "architecture.md").read_text()
    vocabulary = Vocabulary.load(source.path, source.config.vocab_size)
    tokens = vocabulary.encode(text)[:MOST_TOKENS].tolist()
    exact = scored(source, load_weights(source, torch.float32), torch.float32, tokens)
    print("| weights | perplexity | KL, mean | largest | same |\n| --- | --- | --- | --- | --- |")
    print(line("fp32", exact, exact, tokens))
    print(line("bf16", scored(source, load_weights(source, torch.bfloat16), torch.bfloat16, tokens), exact, tokens))
    for dtype in (torch.bfloat16, torch.float32):
        name = f"stored, keys and values {str(dtype).removeprefix('torch.')}"
        print(line(name, scored(source, load_blocks(source, dtype), dtype, tokens), exact, tokens))
    if python := os.environ.get("PAWL_PEER_LLAMA"):
        print(line("llama.cpp, as stored", by_llama(python, source, tokens), exact, tokens))


if __name__ == "__main__":
    main()
