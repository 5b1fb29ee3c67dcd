"""The process of one rank: `python -m pawl.build.rank STEPS BESIDE`, two open sockets. Nobody calls it but its parent.

What it begins with comes in the first message; nothing that comes is unpickled.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from pawl import __version__
from pawl.actors.codec import make_codec
from pawl.actors.text.vocabulary import Vocabulary
from pawl.build.assembly import pooling_of
from pawl.build.grammars import make_grammars
from pawl.build.lora import targets_of
from pawl.config import ServerConfig
from pawl.gpu.adapters.peft import MOST_RANK, AdapterLimits, read_adapter
from pawl.gpu.children import ended_by_parent
from pawl.gpu.dtypes import DTYPES, name_of
from pawl.gpu.heap import resident_bytes
from pawl.gpu.native.ranks import Joined
from pawl.gpu.parallel.actions import RankActions, Used
from pawl.gpu.parallel.communicator import ALONE
from pawl.gpu.parallel.held import HeldExperts
from pawl.gpu.parallel.link import Link
from pawl.gpu.parallel.pages import cut_pages
from pawl.gpu.parallel.rank import Rank
from pawl.gpu.parallel.serve import listen, serve
from pawl.gpu.parallel.shard import Shard, keeper, named_own
from pawl.gpu.parallel.torch_groups import TorchGroups
from pawl.gpu.parallel.wire import Answer, Beside, Loading, Ready, Setup, ToRank
from pawl.gpu.runner import Runner
from pawl.gpu.select import processor_of
from pawl.gpu.weights.blocks import numbers_of
from pawl.gpu.weights.fingerprint import Samples, weights_fingerprint
from pawl.gpu.weights.report import Report
from pawl.gpu.weights.source import load_weights, resolve_source
from pawl.logs import ensure_logs

START_LIMIT_S = 600.0
"""Seconds for all ranks to have read their parts: the first meets the last."""


def main() -> None:
    """Until the parent ends."""
    ended_by_parent()
    steps, beside = (Link(socket.socket(fileno=int(number))) for number in sys.argv[1:3])
    heard = listen(beside)
    codec = make_codec(Setup)
    setup: Setup = codec.decode(steps.receive())
    try:
        config = msgspec.json.decode(setup.settings, type=ServerConfig)
        ensure_logs(config.log_format, config.log_level)
        rank, runner, ready = _load(setup, config, lambda share: steps.send(codec.encode(Loading(share))))
    except Exception as error:
        refusal = " ".join(str(error).split())
        steps.send(codec.encode(Answer(applied=b"", kind=type(error).__name__, refusal=refusal)))
        sys.exit(1)
    steps.send(codec.encode(ready))
    shard = rank.shard
    _, two, tokens, _, dimensions = ready.page_shape
    whole = shard.whole.num_layers, two, tokens, shard.whole.num_kv_heads, dimensions
    actions = RankActions(
        runner,
        tells=shard.last and shard.tensor == 0,
        draws=shard.last,
        cut_in=partial(cut_pages, shape=whole, heads=shard.groups, layers=shard.layers),
        show=partial(_shown, runner),
        used=partial(_used, runner, rank),
        clock=time.perf_counter,
        counts=shard.tensor == 0,  # each routes every token
        experts=HeldExperts(runner.updates),
    )
    serve(actions, steps, beside, heard, partial(make_codec, ToRank | Beside))


def _load(setup: Setup, config: ServerConfig, report: Report) -> tuple[Rank, Runner, Ready]:
    place = setup.topology.place(setup.rank)
    device = torch.device(config.device if config.device == "cpu" else f"{config.device}:{setup.rank}")
    dtype = DTYPES["bf16" if config.dtype == "auto" else config.dtype]
    source = resolve_source(setup.model)
    shard = Shard(
        source.config, setup.topology, place.tensor, setup.placement, gathers=setup.by_kernels, stage=place.stage
    )
    vocabulary = Vocabulary.load(source.path, source.config.vocab_size)
    samples = Samples()
    weights = named_own(shard, load_weights(source, dtype, report, keep=keeper(shard, samples)))
    own = weights_fingerprint(shard.config, weights)
    rank = _rank(setup, config, shard, device)
    limits = AdapterLimits(min(config.max_lora_rank or MOST_RANK, MOST_RANK), targets_of(config))
    runner = Runner(
        source.config,
        weights,
        **msgspec.structs.asdict(setup.sizes),
        device=device,
        dtype=dtype,
        threads=setup.threads,
        backend="native" if setup.by_kernels else "torch",
        deterministic=setup.deterministic,
        grammars=make_grammars(config.grammar_backend, vocabulary),
        pooling=pooling_of(config, source.path),
        adapters=partial(read_adapter, limits=limits),
        rank=rank,
        fingerprint=samples.fingerprint(source.config),
    )
    return rank, runner, _ready(setup, runner, samples.fingerprint(source.config), own)


def _rank(setup: Setup, config: ServerConfig, shard: Shard, device: torch.device) -> Rank:
    """Where it meets the others: kernels in memory, what else there is in torch's groups."""
    joined = None if setup.segment is None else Joined(setup.segment, shard.tensor, config.rank_timeout_s)
    if setup.by_kernels and setup.topology.pipeline == 1:
        return Rank(shard, ALONE, joined)
    return Rank(shard, TorchGroups(setup.topology, setup.rank, device, Path(setup.store), START_LIMIT_S), joined)


def _ready(setup: Setup, runner: Runner, whole: str, own: str) -> Ready:
    stage, tensor = setup.topology.place(setup.rank)
    kv = runner.kv
    layers, two, _, *page = kv.full.shape
    window_bytes = 0 if kv.window is None else kv.window.nbytes
    return Ready(
        rank=setup.rank,
        stage=stage,
        tensor=tensor,
        pid=os.getpid(),
        version=f"{__version__} torch {torch.__version__}",
        device=kv.device,
        processor=processor_of(runner.backend),
        dtype=name_of(kv.dtype),
        backend=runner.backend.name,
        max_tokens=kv.num_pages * kv.page_size,
        kv_bytes=kv.full.nbytes + window_bytes,
        page_shape=(layers, two, *page),
        page_bytes=kv.page_bytes if kv.window is None else 0,
        fingerprint=whole,
        shard=own,
    )


def _used(runner: Runner, rank: Rank) -> Used:
    on_device = 0 if runner.kv.full.on_host else torch.cuda.memory_reserved(runner.device)
    return Used(rank.waited_s, resident_bytes() or 0, on_device)


def _shown(runner: Runner, name: str) -> dict[str, Any]:
    """The fields of an answer that hold the rank's part of this weight; none where it has none of it."""
    weights = runner.named_weights()
    if name not in weights:
        return {}
    weight = np.ascontiguousarray(numbers_of(weights[name]))
    return {"data": weight.reshape(-1).view(np.uint8), "dtype": name_of(weight.dtype), "shape": weight.shape}


if __name__ == "__main__":
    main()
