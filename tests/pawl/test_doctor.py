"""The doctor finds what is planted, and survives what it finds."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from pawl import doctor, selftest
from pawl.cli import main
from pawl.config import ServerConfig
from pawl.doctor import CHECKS, Finding, Level, examine
from pawl.gpu.backend import Backend, BackendUnavailable
from pawl.gpu.models.decoder import TorchDecoder


def look(check: str, **settings: Any) -> Finding:
    return CHECKS[check](ServerConfig(**settings))


def test_a_port_in_use_is_a_problem_and_a_free_one_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert look("port", port=taken.getsockname()[1]).level == Level.PROBLEM
    assert look("port", port=0).level == Level.OK


def test_without_a_compiler_it_warns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    finding = look("compiler")
    assert finding.level == Level.WARNING
    assert "g++" in finding.advice


def test_a_compiler_is_shown_with_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "my-compiler"
    fake.write_text("#!/bin/sh\necho fakecc 1.2.3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    assert look("compiler") == Finding("compiler", Level.OK, f"{fake}: fakecc 1.2.3")


def test_a_model_that_is_not_there_is_a_problem_and_one_that_is_has_its_shape() -> None:
    assert look("model", model="no-such-model").level == Level.PROBLEM
    assert look("model", model="smollm2").detail.endswith("(llama, 30 layers, context 8,192)")


def test_a_folder_for_traces_that_was_chosen_and_cannot_be_written_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file where the folder should be: refused to every user, root included.
    (tmp_path / "file").write_text("")
    finding = look("disk", trace_dir=str(tmp_path / "file"))
    assert finding.level == Level.PROBLEM
    assert look("disk", trace_dir=str(tmp_path / "file"), trace=False).level != Level.PROBLEM
    monkeypatch.setenv("PAWL_CACHE", str(tmp_path / "file"))
    assert look("disk", trace_dir=str(tmp_path / "file")).level == Level.PROBLEM  # also where the home cannot be


def test_a_home_that_cannot_be_written_is_a_warning_that_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PAWL_CACHE", str(tmp_path / "file"))
    finding = look("disk")
    assert finding.level == Level.WARNING
    assert "PAWL_CACHE" in finding.advice


def test_traces_larger_than_the_disk_are_a_warning(tmp_path: Path) -> None:
    finding = look("disk", trace_dir=str(tmp_path / "new" / "traces"), trace_limit_mb=1 << 40)
    assert finding.level == Level.WARNING
    assert "--trace-dir" in finding.advice


def test_more_requests_than_open_files_are_a_warning() -> None:
    assert look("open files", max_queued=1 << 40).level == Level.WARNING


def test_more_threads_than_cores_are_a_warning() -> None:
    assert look("cpu", threads=100_000).level == Level.WARNING


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_not_there_is_a_problem() -> None:
    assert look("torch", device="cuda").level == Level.PROBLEM
    assert look("torch", device="cpu").level == Level.OK


def test_all_that_pawl_needs_is_installed_where_its_tests_run() -> None:
    assert look("packages").level == Level.OK


# ---- kernels ----


class Skewed(TorchDecoder):
    """Computes almost what it should."""

    factor = 1.001

    def forward(self, inputs: Any) -> torch.Tensor:
        return super().forward(inputs) * self.factor


class Broken(Skewed):
    factor = float("nan")


def test_kernels_that_compute_the_same_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "native_backend", lambda: TorchDecoder)
    assert look("kernels").level == Level.OK


@pytest.mark.parametrize("wrong", [Skewed, Broken])
def test_kernels_that_compute_wrong_are_a_problem(wrong: type[Backend], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "native_backend", lambda: wrong)
    finding = look("kernels")
    assert finding.level == Level.PROBLEM
    assert "--backend torch" in finding.advice


def test_kernels_that_cannot_be_built_are_a_problem_only_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unavailable() -> type[Backend]:
        raise BackendUnavailable("native", "no compiler")

    monkeypatch.setattr(selftest, "native_backend", unavailable)
    assert look("kernels").level == Level.WARNING
    assert look("kernels", backend="native").level == Level.PROBLEM


# ---- the command ----


def test_a_check_that_fails_itself_is_a_problem_and_the_others_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(config: ServerConfig) -> Finding:
        raise RuntimeError("no /proc here")

    cheap = {"cpu": CHECKS["cpu"], "memory": failing, "port": CHECKS["port"]}
    monkeypatch.setattr(doctor, "CHECKS", cheap)
    findings = list(examine(ServerConfig(port=0)))
    assert [finding.subject for finding in findings] == ["cpu", "memory", "port"]
    assert findings[1].level == Level.PROBLEM
    assert "no /proc here" in findings[1].detail


def test_the_status_is_1_with_a_problem_and_0_with_warnings_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"port": CHECKS["port"], "cpu": CHECKS["cpu"]})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["doctor", "--json", "--port", str(port)]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert msgspec.convert(json.loads(first), Finding).level == Level.PROBLEM
    assert main(["doctor", "--port", "0", "--threads", "100000"]) == 0
    said = capsys.readouterr()
    assert "warning" in said.out
    assert "0 problems, 1 warnings" in said.err
