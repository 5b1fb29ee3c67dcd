"""New weights for a runner that computes: they give what an engine that starts with them gives, and whatever is
wrong with one leaves the runner as it was."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from pawl.gpu.alone import steps_alone
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig, Rope
from pawl.gpu.models.small import random_weights
from pawl.gpu.runner import Runner
from pawl.gpu.select import BackendChoice, select_backend
from pawl.gpu.step_runner import WeightsRefused
from pawl.gpu.updates import differences, same
from pawl.gpu.weights.safetensors import folder_config, load_folder_weights
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.weight_source import FromBytes, FromDisk, FromSharedMemory, FromTensors
from tests.gpu.driving import same_bits
from tests.gpu.native_models import EXPERTS, ODD, SWITCHED

PROMPT = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)
GREEDY = SamplingParameters(temperature=0.0, max_new_tokens=8, top_logprobs=0)
BACKENDS: list[BackendChoice] = ["torch", "native"]


def folder(path: Path, seed: int, **changes: int) -> Path:
    """A tiny Llama of random weights."""
    sizes = {"vocab_size": 101, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**sizes | heads | changes)).save_pretrained(path, safe_serialization=True)
    return path


def runner_of(path: Path, backend: BackendChoice) -> Runner:
    config = folder_config(path)
    weights = load_folder_weights(path, config, torch.float32)
    sizes = {"num_pages": 1, "page_size": 64, "num_slots": 1, "max_context": 64, "threads": 1}
    return Runner(config, weights, **sizes, dtype=torch.float32, backend=backend)


def said(runner: Runner) -> list[tuple[int, float]]:
    """Tokens with their log-probabilities."""
    results = list(steps_alone(runner, PROMPT, GREEDY, 8, 64))
    return [(int(r.tokens[0]), float(r.logprobs.chosen[0])) for r in results if r.logprobs is not None]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("two"), 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_after_an_exchange_a_runner_says_what_one_that_starts_with_these_weights_says(
    one: Path, two: Path, backend: BackendChoice
) -> None:
    runner, other = runner_of(one, backend), runner_of(two, backend)
    before = said(runner)
    fingerprint = runner.stage(1, FromDisk(str(two)))
    assert said(runner) == before, "what is staged computes nothing"
    runner.swap(1)
    assert said(runner) == said(other) != before
    assert fingerprint in other.layout
    runner.stage(2, FromDisk(str(one), "safetensors"))
    runner.swap(2)
    assert said(runner) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_folder_that_is_written_anew_changes_nothing_that_was_read_from_it(
    one: Path, two: Path, tmp_path: Path, backend: BackendChoice
) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(one, shared)
    runner = runner_of(shared, backend)
    before = said(runner)
    runner.stage(1, FromDisk(str(shared)))
    shutil.copyfile(two / "model.safetensors", shared / "model.safetensors")
    assert said(runner) == before
    runner.swap(1)
    assert said(runner) == before


def damaged(path: Path, kind: str) -> None:
    file = path / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif kind == "whole numbers":
        save_file(weights | {name: weights[name].to(torch.int8)}, file)
    elif kind == "another shape":
        save_file(weights | {name: weights[name][:3].contiguous()}, file)
    elif kind == "a tensor less":
        save_file({key: value for key, value in weights.items() if key != name}, file)
    elif kind == "no number":
        weights[name][2, 1] = torch.nan
        save_file(weights, file)
    elif kind == "another rope":
        values = json.loads((path / "config.json").read_text())
        values.pop("rope_parameters", None)
        (path / "config.json").write_text(json.dumps(values | {"rope_theta": 77.0}))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "damaged safetensors file"),
        ("whole numbers", "stored as int8"),
        ("another shape", "wrong shape"),
        ("a tensor less", "missing model.layers.1.mlp.up_proj.weight"),
        ("another rope", "is another model than the one that is served: rope is"),
        ("no number", "model.layers.1.mlp.up_proj.weight holds a number that is not finite"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_changes_nothing(
    one: Path, two: Path, tmp_path: Path, kind: str, words: str
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(two, bad)
    damaged(bad, kind)
    runner = runner_of(one, "torch")
    before = said(runner)
    with pytest.raises(WeightsRefused, match=words) as refused:
        runner.stage(1, FromDisk(str(bad)))
    assert "\n" not in str(refused.value)
    with pytest.raises(WeightsRefused, match="nothing is staged"):
        runner.swap(1)
    assert said(runner) == before


def test_another_size_another_format_and_no_folder_are_refused(one: Path, tmp_path: Path) -> None:
    runner = runner_of(one, "torch")
    for source, form, words in (
        (str(folder(tmp_path / "large", 1, hidden_size=64)), "auto", "hidden_size is 64, not 48"),
        (str(one), "gguf", "is not gguf"),
        (str(tmp_path / "none"), "auto", "no such file or folder"),
    ):
        with pytest.raises(WeightsRefused, match=words):
            runner.stage(1, FromDisk(source, form))


def test_numbers_are_compared_as_single_precision_tells_them_apart(one: Path) -> None:
    assert same(1e-5, float(np.float32(1e-5)))
    assert not same(1e-5, 2e-5)
    assert same(Rope(1e4, (1.0,)), Rope(1e4, (1.0,)))
    assert not same(Rope(1e4), Rope(1e6))
    assert not same((None, 5), (None,))
    assert differences(folder_config(one), folder_config(one)) == ""


# ---- some tensors, in parts ----


NAMES = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "lm_head.weight",
)
"""A matrix, a norm, a part of each product that is stacked, and one of its own."""


def merged(one: Path, two: Path, path: Path, names: tuple[str, ...] = NAMES) -> Path:
    """A folder of `one` with some weights of `two`."""
    shutil.copytree(one, path)
    other = load_file(two / "model.safetensors")
    save_file(load_file(one / "model.safetensors") | {name: other[name] for name in names}, path / "model.safetensors")
    return path


def sent(path: Path, *names: str) -> FromTensors:
    weights = load_file(path / "model.safetensors")
    return FromTensors({name: weights[name] for name in names})


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_are_sent_in_parts_replace_those_of_their_names_and_no_others(
    one: Path, two: Path, tmp_path: Path, backend: BackendChoice
) -> None:
    runner, whole = runner_of(one, backend), runner_of(merged(one, two, tmp_path / "merged"), backend)
    before = said(runner)
    assert runner.stage(1, sent(two, *NAMES[:2]), last=False) == ""
    assert runner.stage(1, sent(two, *NAMES[2:4]), last=False) == ""
    with pytest.raises(WeightsRefused, match="nothing is staged"):
        runner.swap(1)
    fingerprint = runner.stage(1, sent(two, *NAMES[4:]))
    assert said(runner) == before, "what is staged computes nothing"
    runner.swap(1)
    assert said(runner) == said(whole) != before
    assert fingerprint not in runner.layout
    runner.stage(2, sent(one, *NAMES))
    runner.swap(2)
    assert said(runner) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_part_that_does_not_fit_is_the_end_of_its_update(one: Path, two: Path, backend: BackendChoice) -> None:
    runner = runner_of(one, backend)
    before, name = said(runner), "model.norm.weight"
    for tensors, words in (
        ({name: torch.ones(47)}, r"wrong shape model.norm.weight \(47,\) for \(48,\)"),
        ({"model.layers.2.input_layernorm.weight": torch.ones(48)}, "unexpected model.layers.2"),
        ({name: torch.ones(48, dtype=torch.int32)}, "stored as int32"),
        ({name: torch.full((48,), torch.inf)}, f"what was sent: {name} holds a number that is not finite"),
        ({}, "no tensors"),
    ):
        runner.stage(1, sent(two, *NAMES[2:]), last=False)
        with pytest.raises(WeightsRefused, match=words) as refused:
            runner.stage(1, FromTensors(tensors))
        assert "\n" not in str(refused.value)
        with pytest.raises(WeightsRefused, match="nothing is staged"):
            runner.swap(1)
        assert said(runner) == before
    runner.stage(1, sent(one, name))
    runner.swap(1)
    assert said(runner) == before, "what was kept before the failure is gone"


def test_parts_of_another_update_are_dropped_and_of_two_of_a_name_the_later_counts(one: Path, two: Path) -> None:
    runner = runner_of(one, "torch")
    before = said(runner)
    runner.stage(1, sent(two, *NAMES), last=False)
    runner.stage(2, sent(two, NAMES[0]), last=False)
    runner.stage(2, sent(one, NAMES[0]))
    runner.swap(2)
    assert said(runner) == before


def test_tensors_come_as_bytes_and_in_shared_memory_and_may_be_written_again(
    one: Path, two: Path, tmp_path: Path
) -> None:
    whole = said(runner_of(merged(one, two, tmp_path / "merged"), "torch"))
    data = save(dict(sent(two, *NAMES).tensors))
    segment = SharedMemory(create=True, size=len(data) + 5)
    tensors = sent(two, *NAMES)
    for source in (FromBytes(data), FromSharedMemory(segment.name, len(data)), tensors):
        runner = runner_of(one, "torch")
        segment.buf[: len(data)] = data
        runner.stage(1, source)
        segment.buf[:] = bytes(len(segment.buf))
        for tensor in tensors.tensors.values() if source is tensors else ():
            tensor.zero_()
        runner.swap(1)
        assert said(runner) == whole
    for name, size, words in (
        (segment.name, len(data) * 1000, "all weights of this model have at most"),
        (segment.name, len(data) + 1_000_000, "bytes, not"),
        (segment.name, len(data), "damaged safetensors"),
        ("no_such_segment", 8, "cannot be opened: No such file"),
        ("../etc/passwd", 8, "cannot be opened: No such file"),
    ):
        with pytest.raises(WeightsRefused, match=words):
            runner.stage(2, FromSharedMemory(name, size))
    segment.close()
    segment.unlink()


def test_a_small_change_of_a_large_tensor_has_a_fingerprint_of_its_own(one: Path) -> None:
    runner, name = runner_of(one, "torch"), "model.embed_tokens.weight"
    weight = sent(one, name).tensors[name].clone()
    same_again = runner.stage(1, FromTensors({name: weight}))
    weight[50, 7] += 1.0
    assert runner.stage(2, FromTensors({name: weight})) != same_again


@pytest.mark.parametrize("config", [ODD, SWITCHED, EXPERTS], ids=["odd sizes", "every switch", "experts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_gives_back_the_weights_that_it_was_given(
    config: ModelConfig, dtype: torch.dtype, backend: BackendChoice
) -> None:
    weights = random_weights(config, dtype)
    kv = KvStore(config, num_pages=1, page_size=16, dtype=dtype, device="cpu")
    named = select_backend(backend, config, dict(weights), kv, threads=1).named_weights()
    assert set(named) == set(weights)
    for name, weight in weights.items():
        assert same_bits(named[name], weight), name


def resident_mib() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) >> 10


def resident_after_exchanges(path: str) -> dict[str, list[int]]:
    """Resident memory by backend, MiB: at the start, and after each of four exchanges of all weights."""
    resident: dict[str, list[int]] = {}
    for backend in BACKENDS:
        runner, source = runner_of(Path(path), backend), FromDisk(path)
        resident[backend] = [resident_mib()]
        for ticket in range(1, 5):
            # As a server does, whose heap has a part for each thread.
            stager = Thread(target=runner.stage, args=(ticket, source))
            stager.start()
            stager.join()
            runner.swap(ticket)
            resident[backend].append(resident_mib())
    return resident


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from Linux's /proc")
def test_the_memory_of_weights_that_were_exchanged_is_the_systems_again(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8}
    large = folder(tmp_path / "large", 1, **sizes)
    copy_mib = (large / "model.safetensors").stat().st_size >> 20
    # In a process of its own: what a heap keeps of thousands of other tests would be counted too.
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        of_backends = alone.submit(resident_after_exchanges, str(large)).result()
    for backend, resident in of_backends.items():
        assert max(resident[1:]) - min(resident) < copy_mib / 2, (backend, resident)
