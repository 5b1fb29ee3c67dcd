"""What a model has beside its sizes is in one table; a backend that does not know some of it says which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog.testing
import torch

from pawl.gpu.backend import BackendUnavailable
from pawl.gpu.cuda.decoder import TritonDecoder
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.decoder import TorchDecoder
from pawl.gpu.models.decoders.granite import GraniteDecoder
from pawl.gpu.models.registry import ARCHITECTURES, decoder_of
from pawl.gpu.models.small import random_weights
from pawl.gpu.models.switches import SWITCHES, used_switches
from pawl.gpu.native.backend import NativeBackend
from pawl.gpu.select import select_backend
from pawl.gpu.weights.source import load_weights, resolve_source
from tests.gpu.native_models import EXPERTS, ODD, SWITCHED
from tests.gpu.tiny import save_tiny


def chosen(requested: Any, name: str, folder: Path, **options: Any) -> Any:
    source = resolve_source(str(save_tiny(name, folder)))
    kv = KvStore(source.config, num_pages=1, page_size=4, dtype=torch.float32, device="cpu")
    return select_backend(requested, source.config, load_weights(source, torch.float32), kv, threads=1, **options)


def test_every_field_of_a_model_is_a_size_a_switch_or_its_operation() -> None:
    optional = {field.name for field in msgspec.structs.fields(ModelConfig) if not field.required}
    assert optional == {*SWITCHES, "operation"}


def test_a_plain_llama_uses_no_switch_and_the_tests_models_use_each() -> None:
    assert used_switches(ODD) == []
    assert {*used_switches(SWITCHED), *used_switches(EXPERTS)} == {*SWITCHES}


@pytest.mark.parametrize("kind", [NativeBackend, TritonDecoder])
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_backend_that_does_not_know_a_switch_names_it_and_takes_no_weight(
    kind: Any, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "switches", kind.switches - {switch})
    config = EXPERTS if switch == "experts" else SWITCHED
    weights = random_weights(config, torch.float32)
    kv = KvStore(config, num_pages=1, page_size=4, dtype=torch.float32, device="cpu")
    with pytest.raises(BackendUnavailable, match=rf"does not know .*\({switch}\)"):
        kind(config, weights, kv, threads=1)
    assert weights.keys() == random_weights(config, torch.float32).keys()


@pytest.mark.parametrize(
    ("name", "lacks"), [("granite", "factors of the residual and of the logits"), ("qwen2-moe", "every token uses")]
)
def test_an_operation_that_only_plain_torch_has_goes_there_and_fast_backends_say_what_they_lack(
    name: str, lacks: str, tmp_path: Path
) -> None:
    for requested in ("native", "triton"):
        with pytest.raises(BackendUnavailable, match=lacks):
            chosen(requested, name, tmp_path)
    with pytest.raises(BackendUnavailable, match=lacks):
        chosen("auto", name, tmp_path, deterministic=True)
    with structlog.testing.capture_logs() as logs:
        assert isinstance(chosen("auto", name, tmp_path), TorchDecoder)
    assert [lacks in entry["reason"] for entry in logs] == [True]


def test_a_decoder_without_the_operation_refuses_the_model(tmp_path: Path) -> None:
    config = resolve_source(str(save_tiny("qwen2-moe", tmp_path))).config
    kv = KvStore(config, num_pages=1, page_size=4, dtype=torch.float32, device="cpu")
    for kind in (TorchDecoder, GraniteDecoder):
        with pytest.raises(BackendUnavailable, match="every token uses"):
            kind(config, random_weights(config, torch.float32), kv, threads=1)


def test_a_granite_whose_factors_are_one_is_a_model_for_every_backend(tmp_path: Path) -> None:
    path = save_tiny("granite", tmp_path) / "config.json"
    values = msgspec.json.decode(path.read_bytes()) | {"residual_multiplier": 1.0, "logits_scaling": 1}
    path.write_bytes(msgspec.json.encode(values))
    assert resolve_source(str(tmp_path)).config.operation is None


def test_the_page_of_models_has_each_row_with_its_files_and_what_computes_it() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"][2:]
    # Another table of the page is narrower.
    wide = [row for row in rows if len(row) == 4]
    found = {model_type.strip("`"): (gguf.strip("`"), computed) for _, model_type, gguf, computed in wide}
    expected = {}
    for row in ARCHITECTURES:
        operation = decoder_of(row).operation
        gguf = "llama" if row.name == "mixtral" else row.gguf.name if row.gguf is not None else "-"
        expected[row.model_type] = gguf, "all" if operation is None else f"torch: {operation.what}"
    assert found == expected


def test_names_of_architectures_are_each_one_rows() -> None:
    for names in (
        [row.name for row in ARCHITECTURES],
        [row.model_type for row in ARCHITECTURES],
        [row.gguf.name for row in ARCHITECTURES if row.gguf is not None],
    ):
        assert len(names) == len(set(names))
