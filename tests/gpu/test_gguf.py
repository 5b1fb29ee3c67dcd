"""Our reader of GGUF files against the gguf package's own reader and writer."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from pawl.gpu.models.config import Rope, UnsupportedModel
from pawl.gpu.weights.gguf import GgufFormatError, read_gguf
from pawl.gpu.weights.gguf_model import config_from_gguf, load_gguf_weights
from pawl.gpu.weights.source import load_weights, resolve_source
from tests.gpu.driving import same_bits
from tests.gpu.gguf_files import write_model
from tests.gpu.tiny import save_tiny

TOKENS = ["<s>", "", "né", "漢字", "Ġthe"]
Q8 = gguf.GGMLQuantizationType.Q8_0
F16 = gguf.GGMLQuantizationType.F16


def write_mixed(path: Path) -> Path:
    """A file with metadata of every type and tensors of several kinds."""
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 255)
    writer.add_int8("a.i8", -128)
    writer.add_uint16("a.u16", 65535)
    writer.add_int16("a.i16", -2)
    writer.add_uint32("a.u32", 1 << 31)
    writer.add_int32("a.i32", -(1 << 31))
    writer.add_float32("a.f32", 0.25)
    writer.add_uint64("a.u64", 1 << 63)
    writer.add_int64("a.i64", -(1 << 63))
    writer.add_float64("a.f64", 1e300)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "Grüße")
    writer.add_array("a.strings", TOKENS)
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.5, -1.5])
    writer.add_array("a.bools", [True, False])
    writer.add_tensor("f32", random.normal(size=(3, 5)).astype(np.float32))
    writer.add_tensor("f16", random.normal(size=(2, 3, 4)).astype(np.float16))
    blocks = gguf.quants.quantize(random.normal(size=(4, 64)).astype(np.float32), Q8)
    writer.add_tensor("q8", blocks, raw_dtype=Q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def reference_metadata(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}


def test_metadata_is_what_the_reference_reader_finds(tmp_path: Path) -> None:
    path = write_mixed(tmp_path / "mixed.gguf")
    found = read_gguf(path).metadata
    expected = reference_metadata(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (list(found[name]) if isinstance(value, list) else found[name]) == value


def test_tensors_are_what_the_reference_reader_finds(tmp_path: Path) -> None:
    path = write_mixed(tmp_path / "mixed.gguf")
    file = read_gguf(path)
    reference = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert file.tensors.keys() == reference.keys()
    for name, tensor in reference.items():
        assert file.tensors[name].shape == tuple(reversed(tensor.shape.tolist()))
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.dequantize(name), expected.reshape(file.tensors[name].shape))


def test_arrays_of_strings_are_sequences(tmp_path: Path) -> None:
    strings = read_gguf(write_mixed(tmp_path / "mixed.gguf")).metadata["a.strings"]
    assert (len(strings), strings[3], strings[1:3], list(strings)) == (5, TOKENS[3], TOKENS[1:3], TOKENS)
    assert strings == TOKENS
    assert strings != TOKENS[:4]


def test_a_file_cut_at_any_byte_is_refused_or_says_which_tensor_is_missing(tmp_path: Path) -> None:
    file = read_gguf(write_mixed(tmp_path / "whole.gguf"))
    end = file.tensors["q8"].offset + file.blocks("q8").nbytes
    whole = file.path.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in {*range(0, end, 7), end - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(GgufFormatError):
            read_gguf(path).dequantize("q8")


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        ((0, b"PK\x03\x04"), "not a GGUF file"),
        ((4, struct.pack("<I", 1)), "version 1"),
        ((4, struct.pack(">I", 3)), "version"),
        ((16, struct.pack("<Q", 1 << 40)), "ends beyond the file|truncated"),
        ((24, struct.pack("<Q", 1 << 60)), "ends beyond the file"),
    ],
)
def test_damage_is_named(patch: tuple[int, bytes], reason: str, tmp_path: Path) -> None:
    data = bytearray(write_mixed(tmp_path / "damaged.gguf").read_bytes())
    offset, replacement = patch
    data[offset : offset + len(replacement)] = replacement
    (tmp_path / "damaged.gguf").write_bytes(data)
    with pytest.raises(GgufFormatError, match=reason):
        read_gguf(tmp_path / "damaged.gguf")


# ---- models ----

EXPERTS = [("mixtral", "llama"), ("qwen3-moe", "qwen3moe")]


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("llama", "llama"),
        ("llama-tied", "llama"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("granite", "granite"),
        *EXPERTS,
    ],
)
def test_a_gguf_file_and_a_folder_of_the_same_model_are_equal(name: str, architecture: str, tmp_path: Path) -> None:
    source = resolve_source(str(write_model(name, architecture, tmp_path / f"{name}.gguf")))
    folder = resolve_source(str(save_tiny(name, tmp_path / "folder")))
    assert source.config == folder.config.__replace__(norm_epsilon=source.config.norm_epsilon)
    assert source.config.norm_epsilon == pytest.approx(folder.config.norm_epsilon)
    found, expected = load_weights(source, torch.float32), load_weights(folder, torch.float32)
    assert found.keys() == expected.keys()
    for weight_name, tensor in expected.items():
        assert same_bits(found[weight_name], tensor), weight_name


def test_gemma_files_have_their_unwritten_facts_filled_in(tmp_path: Path) -> None:
    file = read_gguf(write_model("gemma3", "gemma3", tmp_path / "gemma.gguf"))
    config = config_from_gguf(file)
    assert config.windows == (6, 6, 6, 6, 6, None, 6)
    assert config.local_rope == Rope(10_000.0)
    assert config.query_scale == pytest.approx(16**-0.5)
    weights = load_gguf_weights(file, config, torch.float32)
    folder = load_weights(resolve_source(str(save_tiny("gemma3", tmp_path / "folder"))), torch.float32)
    for name, tensor in folder.items():
        assert same_bits(weights[name], tensor), name


def test_experts_outside_the_kinds_that_have_them_are_refused(tmp_path: Path) -> None:
    path = write_model("mixtral", "qwen2", tmp_path / "q.gguf")
    with pytest.raises(UnsupportedModel, match="qwen2: experts are not supported"):
        config_from_gguf(read_gguf(path))


def test_linear_rope_scaling_is_read(tmp_path: Path) -> None:
    path = write_model("llama", "llama", tmp_path / "l.gguf", rope__scaling__type="linear", rope__scaling__factor=8.0)
    assert config_from_gguf(read_gguf(path)).rope == Rope(10_000.0, (8.0,) * 6)


def test_rope_scaling_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path = write_model("llama", "llama", tmp_path / "y.gguf", rope__scaling__type="yarn")
    with pytest.raises(UnsupportedModel, match="yarn"):
        config_from_gguf(read_gguf(path))


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = write_model("llama", "mamba", tmp_path / "m.gguf")
    with pytest.raises(UnsupportedModel, match="mamba: unknown architecture"):
        resolve_source(str(path))
