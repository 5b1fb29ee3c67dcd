"""The model that a recorded run had, to compute its words again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pawl.build.grammars import Folds
from pawl.gpu.ghost.recompute import ghost_again
from pawl.gpu.grammars.cache import Grammars
from pawl.lifecycle.properties.grammar import NoFold
from pawl.lifecycle.properties.start import GHOST
from pawl.lifecycle.recompute import CannotRecompute, Compute
from pawl.lifecycle.records import Started
from pawl.loops.select import LoopConfig


def model_of(started: Started, model: str | None, advance: Callable[[int], object], folds: Folds) -> Compute:
    """The model that `started` describes, loaded from `model` (None: from where the run had it); grammars are those of
    `folds`.

    `advance` hears of tokens that are computed. Raises CannotRecompute where it is another model, or would not compute
    the same bits here, and what loading a model raises.
    """
    if started.config.get("backend") == GHOST:
        if model not in (None, GHOST):
            raise CannotRecompute(f"the run had a ghost as its model, not {model}")
        return partial(ghost_again, advance=advance, grammars=_grammars(started, folds))
    if started.config.get("backend") == "encoder":
        return _encoder(started, model, advance)
    import msgspec

    from pawl.gpu.devices import num_devices
    from pawl.gpu.dtypes import BFLOAT16, FLOAT32
    from pawl.gpu.pooling import Pooling
    from pawl.gpu.recompute import Recomputer
    from pawl.gpu.select import processor_of, same_bits
    from pawl.gpu.weights.blocks import Weights
    from pawl.gpu.weights.fingerprint import weights_fingerprint
    from pawl.gpu.weights.source import load_blocks, load_weights, resolve_source

    try:
        loop = msgspec.convert(started.config["loop"], LoopConfig)
        named, backend, device, processor = (
            str(started.config[name]) for name in ("model", "backend", "device", "processor")
        )
        said = started.config.get("pooling")
        pooling = None if said is None else msgspec.convert(said, Pooling)
        dtype = {"bfloat16": BFLOAT16, "float32": FLOAT32}[started.config["dtype"]]
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise CannotRecompute(f"the trace does not say what computed: {error}") from error
    if device == "cuda" and not num_devices():
        raise CannotRecompute(f"the run was computed on {processor}, and there is no CUDA device here")
    source = resolve_source(model or named)
    stored = started.config.get("weights") == "stored" and source.has_blocks
    weights: Weights = load_blocks(source, dtype) if stored else load_weights(source, dtype)
    fingerprint = weights_fingerprint(source.config, weights)
    if fingerprint != loop.weights:
        raise CannotRecompute(
            f"{model or named} is not the model of this run: its weights are {fingerprint}, the run had {loop.weights}"
        )
    recomputer = Recomputer(
        source.config,
        weights,
        max_context=loop.max_context,
        dtype=dtype,
        device=device,
        backend="triton" if backend.startswith("triton") else "native",
        advance=advance,
        pooling=pooling,
        grammars=_grammars(started, folds),
        like=processor,
    )
    if not same_bits(here := processor_of(recomputer.backend), processor):
        raise CannotRecompute(f"the run was computed with {processor}, and here is {here}: last bits may differ")
    return recomputer


def _encoder(started: Started, model: str | None, advance: Callable[[int], object]) -> Compute:
    """That of a run whose model was an encoder. Raises CannotRecompute, and what loading it raises."""
    import msgspec

    from pawl.gpu.devices import available_threads
    from pawl.gpu.dtypes import DTYPES, name_of
    from pawl.gpu.encoder.config import encoder_config, is_encoder, load_encoder_weights
    from pawl.gpu.encoder.model import Encoder
    from pawl.gpu.encoder.runner import encoder_again
    from pawl.gpu.pooling import Pooling
    from pawl.gpu.weights.fingerprint import weights_fingerprint
    from pawl.gpu.weights.source import find_model

    try:
        loop = msgspec.convert(started.config["loop"], LoopConfig)
        pooling = msgspec.convert(started.config["pooling"], Pooling)
        named, device, processor = (str(started.config[name]) for name in ("model", "device", "processor"))
        (dtype,) = (each for each in DTYPES.values() if name_of(each) == started.config["dtype"])
    except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise CannotRecompute(f"the trace does not say what computed: {error}") from error
    path, _ = find_model(model or named)
    if not is_encoder(path):
        raise CannotRecompute(f"{model or named} is not the model of this run, which was an encoder")
    config = encoder_config(path)
    weights = load_encoder_weights(path, config, dtype)
    fingerprint = weights_fingerprint(config, weights)
    if fingerprint != loop.weights:
        raise CannotRecompute(
            f"{model or named} is not the model of this run: its weights are {fingerprint}, the run had {loop.weights}"
        )
    encoder = Encoder(config, weights, device=device, threads=available_threads())
    if encoder.processor != processor:
        raise CannotRecompute(f"the run was computed with {processor}, and here is {encoder.processor}")
    return partial(encoder_again, encoder, pooling, advance=advance)


def _grammars(started: Started, folds: Folds) -> Grammars | None:
    """Those that the run had. Raises CannotRecompute."""
    if started.config.get("grammar_backend") is None:
        return None
    try:
        return folds.grammars(started)
    except NoFold as error:
        raise CannotRecompute(str(error)) from error
