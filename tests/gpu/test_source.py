"""Finding a model, loading it, and refusing what should not be loaded."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pawl.gpu.dtypes import BFLOAT16, FLOAT32, converted, floats_of
from pawl.gpu.folders import cache_folder
from pawl.gpu.models.config import UnsupportedModel, weight_shapes
from pawl.gpu.weights.cache import entry_path, load_cached_weights, write_entry
from pawl.gpu.weights.checks import WeightMismatch
from pawl.gpu.weights.gguf import GgufFormatError, read_gguf
from pawl.gpu.weights.gguf_model import config_from_gguf
from pawl.gpu.weights.safetensors import FolderError, read_tensors
from pawl.gpu.weights.source import ModelNotFound, load_weights, resolve_source
from tests.gpu.driving import same_bits
from tests.gpu.gguf_files import write_model
from tests.gpu.tiny import save_tiny


class Trap:
    """A pickle of this writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_sharded_folder_loads_like_a_whole_one(tmp_path: Path) -> None:
    whole = resolve_source(str(save_tiny("qwen2", tmp_path / "whole")))
    sharded = resolve_source(str(save_tiny("qwen2", tmp_path / "sharded", max_shard_size="30KB")))
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    expected = load_weights(whole, torch.float32)
    for name, tensor in load_weights(sharded, torch.float32).items():
        assert same_bits(tensor, expected.pop(name))
    assert not expected


def test_weights_have_canonical_names_shapes_and_dtypes(tmp_path: Path) -> None:
    source = resolve_source(str(save_tiny("gemma3", tmp_path)))
    weights = load_weights(source, torch.bfloat16)
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == weight_shapes(source.config)
    for name, tensor in weights.items():
        assert tensor.dtype == (FLOAT32 if name.endswith("norm.weight") else BFLOAT16), name


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
def test_pickles_are_refused_without_being_opened(suffix: str, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    file = folder / f"pytorch_model{suffix}"
    file.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(FolderError, match="pickle"):
        resolve_source(str(folder))
    with pytest.raises(ModelNotFound, match="pickle"):
        resolve_source(str(file))
    assert not (tmp_path / "sprung").exists()


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such file or folder"):
        resolve_source(str(tmp_path / "absent.gguf"))
    with pytest.raises(ModelNotFound, match="no weights"):
        resolve_source("ghost")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FolderError, match=r"no config\.json"):
        resolve_source(str(tmp_path / "empty"))
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(FolderError, match="not JSON"):
        resolve_source(str(tmp_path / "empty"))
    (tmp_path / "text.gguf").write_text("this is not a model at all, sorry")
    with pytest.raises(GgufFormatError, match="not a GGUF file"):
        resolve_source(str(tmp_path / "text.gguf"))


def test_a_folder_without_a_shard_is_refused(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, max_shard_size="30KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(FolderError, match=lost.name):
        resolve_source(str(tmp_path))


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FolderError, match="outside the folder"):
        resolve_source(str(folder))


def change_config(folder: Path, **changes: object) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "rwkv"}, "unknown architecture"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope type 'yarn'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "does not say hidden_size"),
    ],
)
def test_what_would_be_computed_wrong_is_refused(changes: dict[str, object], reason: str, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path)
    with pytest.raises(UnsupportedModel, match=reason):
        resolve_source(change_config(folder, **changes))


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path)
    with pytest.raises(WeightMismatch, match=r"wrong shape .*gate_proj"):
        load_weights(resolve_source(change_config(folder, intermediate_size=81)), torch.float32)
    with pytest.raises(WeightMismatch, match=r"missing model\.layers\.3"):
        load_weights(resolve_source(change_config(folder, intermediate_size=80, num_hidden_layers=4)), torch.float32)
    with pytest.raises(WeightMismatch, match=r"unexpected model\.layers\.2"):
        load_weights(resolve_source(change_config(folder, num_hidden_layers=2)), torch.float32)


# ---- the cache of dequantised weights ----


def test_the_second_load_comes_from_the_cache_and_is_equal(tmp_path: Path) -> None:
    file = read_gguf(write_model("llama", "llama", tmp_path / "model.gguf"))
    config = config_from_gguf(file)
    first = load_cached_weights(file, config, torch.bfloat16, tmp_path)
    entry = entry_path(file, torch.bfloat16, tmp_path)
    assert entry.exists()
    changed = {name: converted(floats_of(tensor) + 1, tensor.dtype) for name, tensor in first.items()}
    write_entry(entry, changed)
    second = load_cached_weights(file, config, torch.bfloat16, tmp_path)
    assert all(same_bits(second[name], changed[name]) for name in first), "what the cache says is what is loaded"


def test_an_entry_belongs_to_one_version_of_one_file_and_one_dtype(tmp_path: Path) -> None:
    path = write_model("llama", "llama", tmp_path / "model.gguf")
    entries = {entry_path(read_gguf(path), dtype, tmp_path) for dtype in (torch.bfloat16, torch.float16)}
    os.utime(path, ns=(1, 1))
    entries.add(entry_path(read_gguf(path), torch.bfloat16, tmp_path))
    write_model("qwen2", "qwen2", path)
    os.utime(path, ns=(1, 1))
    entries.add(entry_path(read_gguf(path), torch.bfloat16, tmp_path))
    assert len(entries) == 4


@pytest.mark.parametrize("damage", ["cut", "other model", "empty"])
def test_a_damaged_entry_is_made_again(damage: str, tmp_path: Path) -> None:
    file = read_gguf(write_model("llama", "llama", tmp_path / "model.gguf"))
    config = config_from_gguf(file)
    expected = {n: t.copy() for n, t in load_cached_weights(file, config, torch.bfloat16, tmp_path).items()}
    entry = entry_path(file, torch.bfloat16, tmp_path)
    whole = entry.read_bytes()
    if damage == "other model":
        write_entry(entry, {"model.norm.weight": np.ones(3, np.float32)})
    else:
        entry.unlink()
        entry.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    found = load_cached_weights(file, config, torch.bfloat16, tmp_path)
    assert all(same_bits(found[name], tensor) for name, tensor in expected.items())
    assert entry.read_bytes() == whole


def test_a_write_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    entry = tmp_path / "weights" / "entry.safetensors"
    with pytest.raises(ValueError, match="holds no complex128"):
        write_entry(entry, {"good": np.ones(2), "bad": np.ones(2, complex)})
    assert list(entry.parent.iterdir()) == []


def test_a_failed_rewrite_keeps_the_entry_that_was_there(tmp_path: Path) -> None:
    entry = tmp_path / "entry.safetensors"
    write_entry(entry, {"good": np.ones(2)})
    with pytest.raises(ValueError, match="holds no complex128"):
        write_entry(entry, {"bad": np.ones(2, complex)})
    assert [name for name, _ in read_tensors(entry)] == ["good"]
    assert list(tmp_path.iterdir()) == [entry]


def test_a_cache_that_cannot_be_written_does_not_stop_the_load(tmp_path: Path) -> None:
    file = read_gguf(write_model("llama", "llama", tmp_path / "model.gguf"))
    config = config_from_gguf(file)
    (tmp_path / "weights").write_text("a file where the folder should be")
    weights = load_cached_weights(file, config, torch.bfloat16, tmp_path)
    assert weights.keys() == weight_shapes(config).keys()


def test_the_cache_directory_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAWL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PAWL_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "pawl"
