"""The process of one rank: `python -m pawl.build.rank STEPS BESIDE HERE`, two open sockets, and what its host gives it.
Nobody calls it but its parent.

What else it begins with comes in the first message; nothing that comes is unpickled.
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
from pawl.actors.runtime.codec import Codec
from pawl.actors.runtime.processes.keys import read_keys
from pawl.actors.text.vocabulary import Vocabulary
from pawl.build.assembly import pooling_of
from pawl.build.grammars import make_grammars
from pawl.build.hosts.addresses import reached
from pawl.build.lora import targets_of
from pawl.build.stage_links import StageLinks
from pawl.config import ServerConfig
from pawl.gpu.adapters.peft import MOST_RANK, AdapterLimits, read_adapter
from pawl.gpu.children import ended_by_parent
from pawl.gpu.dtypes import DTYPES, name_of
from pawl.gpu.heap import resident_bytes
from pawl.gpu.native.ranks import Joined
from pawl.gpu.parallel.actions import RankActions, Used
from pawl.gpu.parallel.communicator import ALONE, Communicator
from pawl.gpu.parallel.held import HeldExperts
from pawl.gpu.parallel.link import Link
from pawl.gpu.parallel.pages import cut_pages
from pawl.gpu.parallel.rank import Rank
from pawl.gpu.parallel.serve import listen, serve
from pawl.gpu.parallel.shard import Shard, keeper, named_own
from pawl.gpu.parallel.torch_groups import TorchGroups
from pawl.gpu.parallel.wire import Answer, Beside, Here, Loading, NextStage, Ready, Setup, ToRank, Waits
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
    here = msgspec.json.decode(sys.argv[3], type=Here)
    codec = make_codec(Setup | NextStage)
    setup: Setup = codec.decode(steps.receive())
    try:
        config = msgspec.json.decode(setup.settings, type=ServerConfig)
        ensure_logs(config.log_format, config.log_level)
        others = _met(setup, config, here, steps, codec)
        rank, runner, ready = _load(setup, config, here, others, lambda share: steps.send(codec.encode(Loading(share))))
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


def _device(config: ServerConfig, here: Here) -> torch.device:
    return torch.device(config.device if config.device == "cpu" else f"{config.device}:{here.device}")


def _met(setup: Setup, config: ServerConfig, here: Here, steps: Link, codec: Codec) -> Communicator:
    """The other ranks: kernels meet in memory, stages on several hosts over links, what else there is in torch's
    groups."""
    topology, (stage, tensor), device = setup.topology, setup.topology.place(setup.rank), _device(config, here)
    if here.waits_at is None or here.keys is None:
        if setup.by_kernels and topology.pipeline == 1:
            return ALONE
        return TorchGroups(topology, setup.rank, device, Path(here.store), START_LIMIT_S)
    of_stage: Communicator = ALONE
    if not setup.by_kernels and topology.tensor > 1:
        own = msgspec.structs.replace(topology, pipeline=1)
        of_stage = TorchGroups(own, tensor, device, Path(f"{here.store}-{stage}"), START_LIMIT_S)
    links = StageLinks(of_stage, here.waits_at, read_keys(Path(here.keys)), START_LIMIT_S)
    steps.send(codec.encode(Waits(links.address)))
    behind: NextStage = codec.decode(steps.receive())
    links.join(reached(behind.address, here.head or ""), behind.start)
    return links


def _load(
    setup: Setup, config: ServerConfig, here: Here, others: Communicator, report: Report
) -> tuple[Rank, Runner, Ready]:
    place = setup.topology.place(setup.rank)
    device = _device(config, here)
    dtype = DTYPES["bf16" if config.dtype == "auto" else config.dtype]
    source = resolve_source(setup.model if Path(setup.model).exists() else setup.name)
    shard = Shard(
        source.config, setup.topology, place.tensor, setup.placement, gathers=setup.by_kernels, stage=place.stage
    )
    vocabulary = Vocabulary.load(source.path, source.config.vocab_size)
    samples = Samples()
    weights = named_own(shard, load_weights(source, dtype, report, keep=keeper(shard, samples)))
    own = weights_fingerprint(shard.config, weights)
    joined = None if here.segment is None else Joined(here.segment, shard.tensor, config.rank_timeout_s)
    rank = Rank(shard, others, joined)
    limits = AdapterLimits(min(config.max_lora_rank or MOST_RANK, MOST_RANK), targets_of(config))
    runner = Runner(
        source.config,
        weights,
        **msgspec.structs.asdict(setup.sizes),
        device=device,
        dtype=dtype,
        threads=here.threads,
        backend="native" if setup.by_kernels else "torch",
        deterministic=setup.deterministic,
        grammars=make_grammars(config.grammar_backend, vocabulary),
        pooling=pooling_of(config, source.path),
        adapters=partial(read_adapter, limits=limits),
        rank=rank,
        fingerprint=samples.fingerprint(source.config),
    )
    return rank, runner, _ready(setup, here, runner, samples.fingerprint(source.config), own)


def _ready(setup: Setup, here: Here, runner: Runner, whole: str, own: str) -> Ready:
    stage, tensor = setup.topology.place(setup.rank)
    kv = runner.kv
    layers, two, _, *page = kv.full.shape
    window_bytes = 0 if kv.window is None else kv.window.nbytes
    return Ready(
        rank=setup.rank,
        stage=stage,
        tensor=tensor,
        pid=os.getpid(),
        host=here.host,
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
