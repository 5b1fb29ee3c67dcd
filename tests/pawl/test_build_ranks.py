"""Ranks that are processes: they answer as one runner does, die, hang, and are started again under load."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pawl.config import ConfigError, build_config
from pawl.engine import Engine, RequestFailed
from pawl.gpu.parallel.group import RankGroup
from pawl.gpu.step_runner import WeightsRefused
from pawl.lifecycle.audit import Verdict, audit
from tests.actors.vocabularies import byte_level
from tests.gpu.driving import same_bits
from tests.gpu.real import smollm2_source
from tests.gpu.tiny import save_tiny

GREEDY = {"temperature": 0.0, "max_new_tokens": 24, "ignore_eos": True}
SETTINGS: dict[str, Any] = {
    "dtype": "fp32",
    "kv_tokens": 2048,
    "max_running": 8,
    "page_size": 4,
    "grammar_backend": "plain",
    "log_level": "error",
}


MANY: list[dict[str, Any]] = [
    *({"tp": 2, "backend": "torch"}, {"pp": 2}, {"pp": 3, "backend": "torch"}),
    *({"pp": 2, "tp": 2}, {"pp": 2, "tp": 2, "backend": "torch"}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with 2 groups of heads."""
    return tiny("llama", tmp_path_factory.mktemp("llama"))


def tiny(name: str, path: Path) -> Path:
    save_tiny(name, path)
    byte_level().tokenizer.save(str(path / "tokenizer.json"))
    return path


def prompts(count: int, vocabulary: int = 90) -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(3, vocabulary, int(length)).tolist() for length in random.integers(1, 40, count)]


def engine_of(model: Path | str, trace: Path, **more: Any) -> Engine:
    return Engine(build_config(SETTINGS | {"model": str(model), "trace_dir": str(trace)} | more))


def answers(
    model: Path | str, trace: Path, asked: list[list[int]], sampling: Mapping[str, Any] = GREEDY, **more: Any
) -> list[list[int]]:
    with engine_of(model, trace, **more) as engine:
        found = [each.tokens for each in engine.generate(asked, dict(sampling))]
    assert audit(trace).verdict is Verdict.PASS
    return found


def pids(engine: Engine) -> list[int]:
    group = engine.parts.runner
    assert isinstance(group, RankGroup)
    return [one.pid for one in group.ready]


def survives(folder: Path, trace: Path, fault: signal.Signals, **more: Any) -> None:
    """A rank has `fault` while requests are computed, and every one of them ends as it does without."""
    asked = prompts(6)
    expected = answers(folder, trace / "alone", asked, backend=more.get("backend", "auto"))
    with engine_of(folder, trace / "ranks", **more) as engine:
        assert [one["steps"] for one in engine.control("state")["ranks"]] == [0] * len(pids(engine))
        assert [each.tokens for each in engine.generate(asked, GREEDY)] == expected
        before = pids(engine)
        assert [one["pid"] for one in engine.parts.summary["ranks"]] == before
        for pid in before:
            os.kill(pid, signal.SIGTERM)  # as every process of a service gets it that is stopped
        assert all(one["resident_bytes"] > 0 for one in engine.control("state")["ranks"])
        stream = engine.stream(asked[0], GREEDY | {"max_new_tokens": 80})
        tokens = list(next(stream).tokens)
        assert pids(engine) == before
        os.kill(before[1], fault)
        again = [each.tokens for each in engine.generate(asked, GREEDY)]
        for delta in stream:
            tokens += delta.tokens
        after = pids(engine)
        told = engine.control("state")["ranks"]
    assert again == expected
    assert [(one["rank"], one["pid"], one["restarts"]) for one in told] == [(n, pid, 1) for n, pid in enumerate(after)]
    assert all(one["steps"] > 0 for one in told)
    assert tuple(tokens[:24]) == tuple(expected[0])
    assert len(tokens) == 80
    assert not set(before) & set(after)
    assert not any(map(alive, before + after))
    assert audit(trace / "ranks").verdict is Verdict.PASS


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_ranks_answer_as_one_does_and_the_death_of_one_under_load_costs_nobody_a_token(
    folder: Path, tmp_path: Path
) -> None:
    survives(folder, tmp_path, signal.SIGKILL, tp=2)


def test_two_stages_of_the_compiled_kernels_answer_as_one_runner_does(folder: Path, tmp_path: Path) -> None:
    asked, native = prompts(6), {"backend": "native", "dtype": "bf16"}
    assert answers(folder, tmp_path / "stages", asked, pp=2, **native) == answers(
        folder, tmp_path / "one", asked, **native
    )


@pytest.mark.slow
@pytest.mark.parametrize("more", MANY, ids=str)
def test_the_death_of_a_rank_under_load_costs_nobody_a_token(
    more: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    survives(folder, tmp_path, signal.SIGKILL, **more)


@pytest.mark.slow
def test_smollm2_answers_in_two_stages_with_the_bits_that_it_has_in_one(tmp_path: Path) -> None:
    smollm2_source()
    asked, native = prompts(24, 40_000), {"backend": "native", "dtype": "bf16", "deterministic": True}
    expected = answers("smollm2", tmp_path / "one", asked, **native)
    assert answers("smollm2", tmp_path / "stages", asked, pp=2, **native) == expected


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_rank_that_hangs_is_found_by_the_deadline_of_its_step(backend: str, folder: Path, tmp_path: Path) -> None:
    survives(folder, tmp_path, signal.SIGSTOP, tp=2, rank_timeout_s=5.0, backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"tp": 2}, {"tp": 3}, {"tp": 2, "hybrid_pools": "off"}])
def test_smollm2_answers_on_two_and_three_ranks_as_on_one(more: dict[str, Any], tmp_path: Path) -> None:
    smollm2_source()
    asked, torch = prompts(24, 40_000), {"backend": "torch"}
    expected = answers("smollm2", tmp_path / "one", asked, **torch)
    assert answers("smollm2", tmp_path / "ranks", asked, **torch, **more) == expected


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"tp": 2}, {"tp": 3}, {"tp": 2, "pp": 2}, {"tp": 2, "speculate": "ngram"}], ids=str)
def test_deterministic_ranks_draw_the_same_tokens_in_every_number(more: dict[str, Any], tmp_path: Path) -> None:
    smollm2_source()
    asked, bits = prompts(24, 40_000), {"deterministic": True, "dtype": "bf16"}
    sampled = GREEDY | {"temperature": 1.0, "top_p": 0.9, "seed": 7}
    expected = answers("smollm2", tmp_path / "one", asked, sampled, **bits)
    assert answers("smollm2", tmp_path / "ranks", asked, sampled, **bits, **more) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral"])
def test_experts_on_two_ranks_answer_as_on_one_and_are_counted(name: str, tmp_path: Path) -> None:
    folder = tiny(name, tmp_path / name)
    asked = prompts(12)
    expected = answers(folder, tmp_path / "one", asked)
    with engine_of(folder, tmp_path / "ranks", ep=2) as engine:
        engine.control("start-expert-record")
        assert [each.tokens for each in engine.generate(asked, GREEDY)] == expected
        record = engine.control("dump-expert-record")
    sums = [sum(counts) for counts in record["logical_count"]]
    assert sums == [record["num_tokens"] * record["num_experts_per_token"]] * len(sums)


LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    *(("llama-no-sharing", more) for more in ({"tp": 2}, {"tp": 3}, {"pp": 2}, {"pp": 3}, {"dp": 2})),
    *(("llama-no-sharing", more) for more in ({"tp": 2, "pp": 2}, {"dp": 2, "tp": 2}, {"dp": 2, "pp": 2})),
    *(("qwen3-moe", more) for more in ({"ep": 2}, {"tp": 2}, {"dp": 2, "ep": 2}, {"pp": 2, "ep": 2})),
]


def asked_at_random(count: int, vocabulary: int) -> list[tuple[list[int], dict[str, Any]]]:
    """Requests of any kind, each with a seed of its own; some begin alike."""
    random, found = np.random.default_rng(11), list[tuple[list[int], dict[str, Any]]]()
    for number in range(count):
        begin = [5] * int(random.integers(0, 12)) if random.random() < 0.4 else []
        sampling = {"temperature": float(random.choice([0.0, 0.7, 1.0])), "top_p": float(random.choice([0.8, 1.0]))}
        sampling |= {"seed": number, "max_new_tokens": int(random.integers(1, 24)), "ignore_eos": True}
        found.append((begin + random.integers(3, vocabulary, int(random.integers(1, 30))).tolist(), sampling))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), LAYOUTS, ids=str)
def test_a_thousand_random_requests_have_the_same_tokens_however_a_model_is_shared_out(
    name: str, more: dict[str, Any], tmp_path: Path
) -> None:
    folder, asked, found = tiny(name, tmp_path / "model"), asked_at_random(1000, 90), []
    settings = {"backend": "native", "deterministic": True, "max_queued": 2048, "max_running": 32, "kv_tokens": 4096}
    for place, layout in enumerate(({}, more)):
        with engine_of(folder, tmp_path / str(place), **settings, **layout) as engine:
            results = engine.generate([prompt for prompt, _ in asked], [sampling for _, sampling in asked])
            found.append([result.tokens for result in results])
    assert found[0] == found[1]
    traces = [tmp_path / "1" / f"replica-{number}" for number in range(more.get("dp", 1))]
    assert all(audit(each).verdict is Verdict.PASS for each in (traces if "dp" in more else [tmp_path / "1"]))


BALANCED = {"ep": 2, "enable_eplb": True, "ep_num_redundant_experts": 2, "eplb_rebalance_num_iterations": 0}
MOST_TURNS = 500
"""Experts are laid out beside the steps, however many these are until then."""
WAYS: list[dict[str, Any]] = [{"backend": "native"}, {"pp": 2, "backend": "native"}, {"backend": "torch"}]


def test_experts_move_while_requests_are_computed_and_a_rank_that_dies_then_costs_nobody_a_token(
    tmp_path: Path,
) -> None:
    moved_and_killed(tmp_path, eplb_rebalance_num_iterations=4)


@pytest.mark.slow
@pytest.mark.parametrize("more", WAYS, ids=str)
def test_experts_move_in_stages_in_parts_of_several_ranks_and_in_plain_torch(
    more: dict[str, Any], tmp_path: Path
) -> None:
    moved_and_killed(tmp_path, **more)


def moved_and_killed(path: Path, **more: Any) -> None:
    folder, asked = tiny("qwen3-moe", path / "model"), prompts(6)
    expected = answers(folder, path / "one", asked, backend=more.get("backend", "auto"))
    with engine_of(folder, path / "ranks", **BALANCED | more) as engine:
        assert [each.tokens for each in engine.generate(asked, GREEDY)] == expected
        before = engine.parts.runner.placing.placement  # type: ignore[union-attr]
        after = before
        for turn in range(MOST_TURNS):
            engine.generate([[3 + turn % 3, 4]] * 4, GREEDY)
            if not more.get("eplb_rebalance_num_iterations"):
                engine.control("rebalance-experts")
            after = engine.parts.runner.placing.placement  # type: ignore[union-attr]
            if turn >= 2 and after != before:
                break
        assert after != before
        assert any(len(owners) > 1 for placed in after for owners in placed)
        stream = engine.stream(asked[0], GREEDY | {"max_new_tokens": 40})
        tokens = list(next(stream).tokens)
        os.kill(pids(engine)[-1], signal.SIGKILL)
        again = [each.tokens for each in engine.generate(asked, GREEDY)]
        tokens += [token for delta in stream for token in delta.tokens]
        shown = {name: weight for name, weight in engine.parts.runner.named_weights().items() if ".experts." in name}
    assert again == expected
    assert tuple(tokens[:24]) == tuple(expected[0])
    whole = load_file(folder / "model.safetensors")
    assert shown
    assert all(same_bits(weight, whole[name]) for name, weight in shown.items() if name in whole)
    assert audit(path / "ranks").verdict is Verdict.PASS


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"backend": "torch"}, {"tp": 1, "pp": 2}], ids=str)
def test_weights_are_exchanged_on_all_ranks_and_shown_whole(more: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    other, third, asked = exchanged(folder, tmp_path / "other"), tiny("llama3-rope", tmp_path / "rope"), prompts(4)
    backend = more.get("backend", "auto")
    expected = [answers(each, tmp_path / each.name / "trace", asked, backend=backend) for each in (folder, other)]
    with engine_of(folder, tmp_path / "one", backend="torch") as one:
        stored = dict(one.parts.runner.named_weights())
    with engine_of(folder, tmp_path / "ranks", **{"tp": 2} | more) as engine:
        weights = engine.parts.runner.named_weights()
        assert set(weights) == set(stored)
        assert all((weights[name] == stored[name]).all() for name in stored)
        with pytest.raises(RequestFailed, match="another model"):
            engine.control("update-weights", model_path=str(third))
        assert [each.tokens for each in engine.generate(asked, GREEDY)] == expected[0]
        engine.control("update-weights", model_path=str(other))
        assert [each.tokens for each in engine.generate(asked, GREEDY)] == expected[1]
        os.kill(pids(engine)[0], signal.SIGKILL)
        assert [each.tokens for each in engine.generate(asked, GREEDY)] == expected[1]
        with pytest.raises(WeightsRefused, match="exchanged"):
            weights["model.norm.weight"]


def exchanged(folder: Path, path: Path) -> Path:
    """The same model with the queries of two layers exchanged."""
    shutil.copytree(folder, path)
    tensors = load_file(path / "model.safetensors")
    first, second = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.slow
def test_memory_is_released_on_all_ranks_and_had_again(folder: Path, tmp_path: Path) -> None:
    asked = prompts(3)
    with engine_of(folder, tmp_path, tp=2) as engine:
        expected = [each.tokens for each in engine.generate(asked, GREEDY)]
        engine.release_memory()
        assert engine.parts.runner.released
        engine.resume_memory()
        assert [each.tokens for each in engine.generate(asked, GREEDY)] == expected
    assert audit(tmp_path).verdict is Verdict.PASS


@pytest.mark.slow
def test_pages_of_ranks_go_below_the_device_and_come_back_whole(folder: Path, tmp_path: Path) -> None:
    shared = prompts(1)[0] * 3
    asked = [[*shared[:60], *tail] for tail in ([4], [5], [6])]
    few = {"kv_tokens": 128, "host_cache_gb": 0.01, "max_running": 1}
    expected = answers(folder, tmp_path / "one", asked)
    with engine_of(folder, tmp_path / "ranks", tp=2, **few) as engine:
        for _ in range(2):
            assert [each.tokens for each in engine.generate(asked, GREEDY)] == expected
            engine.generate(prompts(4), GREEDY)  # which takes the pages
    assert audit(tmp_path / "ranks").verdict is Verdict.PASS


@pytest.mark.slow
def test_ranks_end_when_their_server_is_killed(folder: Path, tmp_path: Path) -> None:
    code = f"""
import sys, time
from pawl.config import build_config
from pawl.engine import Engine, RequestFailed
engine = Engine(build_config({SETTINGS | {"model": str(folder), "trace_dir": str(tmp_path), "tp": 2}!r})).start()
print(*[one.pid for one in engine.parts.runner.ready], flush=True)
sys.stdin.read()
"""
    server = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    found = list(map(int, server.stdout.readline().split()))
    ends = [os.pidfd_open(pid) for pid in found]
    server.kill()
    server.communicate()
    for end in ends:
        assert wait_for_end(end)
    assert len(found) == 2


def wait_for_end(pidfd: int, limit_s: float = 60.0) -> bool:
    import select

    ended, _, _ = select.select([pidfd], [], [], limit_s)
    os.close(pidfd)
    return bool(ended)


@pytest.fixture
def refused(folder: Path, tmp_path: Path) -> Callable[..., str]:
    def words(model: str = "", **more: Any) -> str:
        with pytest.raises(ConfigError) as error:
            engine_of(model or folder, tmp_path, **more)
        return str(error.value)

    return words


def test_ranks_that_a_model_cannot_have_are_refused_with_the_numbers_before_any_starts(
    refused: Callable[..., str],
) -> None:
    assert "tp 3: this model has 2 key heads" in refused(tp=3)
    assert "ep 2: this model has 1 experts" in refused(ep=2)
    assert "ep 2 does not divide tp 3" in refused(tp=3, ep=2)
    assert "sums of torch depend" in refused(tp=2, backend="torch", deterministic=True)
    assert "pp 9: this model has 3 layers, and a stage has one at the least" in refused(pp=9)
    assert "tp 3: this model has 2 key heads" in refused(tp=3, pp=2)
    assert "triton does not share" in refused(pp=2, backend="triton")
    assert "each stage of the model" in refused(pp=2, hybrid_pools="on")
    assert "ghost" in refused(model="ghost", pp=2, dtype="auto")
    assert "ghost" in refused(model="ghost", tp=2, dtype="auto")
