"""Compiling the kernels: once, whole or not at all, and with a reason when it cannot be."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from pawl.gpu.models.small import random_weights
from pawl.gpu.native import bindings, build, store
from pawl.gpu.native.build import NativeUnavailable
from tests.gpu.native_models import ODD, make


def fake_compiler(folder: Path, script: str) -> Path:
    """A compiler that answers `--version` and else does what `script` says."""
    path = folder / "fake-c++"
    path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo fake 1.0; exit 0; fi\n{script}\n')
    path.chmod(0o755)
    return path


WRITES_ITS_OUTPUT = 'while [ "$1" != -o ]; do shift; done; echo made > "$2"; echo run >> "$RUNS"'


def test_a_library_is_made_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, WRITES_ITS_OUTPUT)))
    monkeypatch.setenv("RUNS", str(runs))
    first = build.build(tmp_path / "cache")
    compiled = len(runs.read_text().splitlines())
    assert compiled == 1 + len(list(build.SOURCES.glob("*.cpp"))), "one run for each source, one to link"
    assert build.build(tmp_path / "cache") == first
    assert len(runs.read_text().splitlines()) == compiled
    assert [path.name for path in first.parent.iterdir()] == [first.name], "nothing is left behind"


def test_another_compiler_gets_another_library(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    second = fake_compiler(other, "exit 1")
    second.write_text(second.read_text().replace("1.0", "2.0"))
    assert build.compiled_path(str(fake_compiler(one, "exit 1"))) != build.compiled_path(str(second))


def test_a_compiler_that_fails_is_a_reason_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, "echo no such instruction >&2; exit 3")))
    with pytest.raises(NativeUnavailable, match="exited with 3: no such instruction"):
        build.build(tmp_path / "cache")
    assert not list((tmp_path / "cache" / "native").iterdir())


def test_a_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NativeUnavailable, match="no-such-compiler"):
        build.build()


def test_without_a_compiler_every_weight_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(store, "load_library", bindings.load_library.__wrapped__)
    weights = random_weights(ODD, torch.float32)
    names = set(weights)
    with pytest.raises(NativeUnavailable, match="no C"):
        make(ODD, torch.float32, weights=weights)
    assert set(weights) == names


def test_a_cache_that_is_a_file_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(NativeUnavailable, match="cannot be written"):
        build.build(tmp_path / "cache")


def test_a_library_that_is_none_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "pawl.so").write_text("not a library")
    with pytest.raises(NativeUnavailable, match="cannot be loaded"):
        bindings.Library(tmp_path / "pawl.so")


def test_a_store_without_kernels_is_refused() -> None:
    with pytest.raises(NativeUnavailable, match="float16"):
        make(ODD, torch.float16)


def test_the_kernels_know_their_target() -> None:
    name, _, more = make(ODD, torch.float32).backend.target.partition(" with ")
    assert name in ("avx512", "avx2", "neon", "generic")
    assert more in ("", "byte products", "bf16 products", "tiles, sums in blocks")


def test_where_the_cache_cannot_be_written_kernels_are_compiled_for_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PAWL_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, WRITES_ITS_OUTPUT)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with capture_logs() as logs:
        made = build.build()
    assert made.read_text() == "made\n"
    assert made.is_relative_to(tmp_path)
    assert "PAWL_CACHE" in logs[0]["advice"]


@pytest.mark.parametrize("granted", [True, False])
@pytest.mark.parametrize("missing", ["", "amx_bf16"])
def test_tile_registers_are_those_that_the_processor_has_and_the_system_grants(
    granted: bool, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = "amx_bf16 avx512f amx_tile amx_int8".replace(missing or "none", "")
    monkeypatch.setattr(build, "_processor", lambda: f"flags\t\t: fpu {has} sse")
    monkeypatch.setattr(build, "_tiles_granted", lambda: granted)
    assert build.has_tiles() is (granted and not missing)
