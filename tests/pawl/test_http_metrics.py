"""`GET /metrics`: what is counted, in a format that Prometheus reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pawl.actors.gateway import Gateway
from pawl.actors.measures import Histogram, Operation
from pawl.actors.messages.generate import Submit
from pawl.build.ghost import load_ghost
from pawl.config import build_config
from pawl.gpu.step_runner import RankState
from pawl.http.metrics import FROM_RANKS, exposition
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import ABORT_CAUSES, FINISH_CAUSES, Cause, State
from tests.pawl.fake_engine import INFO, FakeEngine, Served
from tests.pawl.ghost_server import ghost_server
from tests.pawl.reading import samples


def test_metrics_are_readable_and_count_what_happened() -> None:
    with Served() as served, httpx.Client(base_url=served.url) as client:
        for _ in range(3):
            client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 4})
        client.post("/generate", json={"text": ""})
        response = client.get("/metrics")
        numbers = samples(response.text)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert numbers["pawl_requests_submitted_total"] == 4
    assert numbers["pawl_requests_ended_total{cause=length}"] == 3
    assert numbers["pawl_requests_ended_total{cause=invalid}"] == 1
    assert numbers["pawl_generated_tokens_total"] == 12
    assert numbers["pawl_prompt_tokens_total"] == 15
    assert numbers["pawl_cached_tokens_total"] == 6
    assert numbers["pawl_cache_hit_rate"] == pytest.approx(0.4)
    model = "gen_ai_operation_name=text_completion,gen_ai_provider_name=pawl,gen_ai_request_model=echo"
    name = "gen_ai_server_time_to_first_token_seconds"
    assert numbers[f"{name}_count{{{model}}}"] == 3
    assert numbers[f"{name}_bucket{{{model},le=+Inf}}"] == 3
    assert numbers[f"gen_ai_server_request_duration_seconds_count{{{model}}}"] == 4
    assert numbers[f"gen_ai_server_time_per_output_token_seconds_count{{{model}}}"] == 3
    assert numbers["pawl_queue_time_seconds_sum"] == pytest.approx(1.5)
    assert numbers["pawl_pages{owner=free}"] == 90
    assert numbers["pawl_page_size_tokens"] == 16
    assert numbers["pawl_steps_total"] == 12
    assert numbers["pawl_retractions_total"] == 3
    assert numbers["pawl_mailbox_depth{actor=tokenizer,lane=data}"] == 5
    assert numbers["pawl_mailbox_rejected_total{actor=tokenizer}"] == 2
    assert sum(value for key, value in numbers.items() if key.startswith("pawl_violations_total")) == 0


def test_metrics_of_a_silent_scheduler_say_so_and_keep_the_rest() -> None:
    gateway = Gateway()
    gateway.context = StillContext()
    numbers = samples(exposition(gateway, INFO, None, {}, {}))
    assert numbers["pawl_scheduler_up"] == 0
    assert numbers["pawl_requests_open"] == 0
    assert not any(key.startswith("pawl_pages") for key in numbers)


def test_a_violation_shows_under_its_name_with_labels_escaped() -> None:
    gateway = Gateway()
    gateway.context = StillContext()
    gateway.totals.violations['odd "name"\\\n'] = 2
    numbers = samples(exposition(gateway, INFO, None, {}, {}))
    assert numbers['pawl_violations_total{property=odd "name"\\\n}'] == 2


def test_what_the_scheduler_saw_not_to_hold_is_counted_with_what_the_gateway_saw() -> None:
    gateway = Gateway()
    gateway.context = StillContext()
    gateway.totals.violations["legal_lifecycle"] = 1
    numbers = samples(exposition(gateway, INFO, {"violations": {"conservation": 3, "legal_lifecycle": 1}}, {}, {}))
    assert numbers["pawl_violations_total{property=conservation}"] == 3
    assert numbers["pawl_violations_total{property=legal_lifecycle}"] == 2


def test_ranks_of_each_replica_are_told_apart() -> None:
    gateway = Gateway()
    gateway.context = StillContext()
    one = RankState(rank=0, stage=0, tensor=0, pid=1, device="cpu", max_tokens=1, kv_bytes=1, shard="", restarts=0)
    ranks = [msgspec.structs.replace(one, rank=number, steps=7 + number, waiting_s=0.5) for number in range(2)]
    state = {"ranks": msgspec.to_builtins(ranks)}
    alone = samples(exposition(gateway, INFO, state, {}, {}))
    assert (alone["pawl_rank_steps_total{rank=0}"], alone["pawl_rank_steps_total{rank=1}"]) == (7, 8)
    several = samples(exposition(gateway, INFO, {"replicas": [state, {}, state]}, {}, {}))
    assert {key for key in several if key.startswith("pawl_rank_waiting_seconds_total")} == {
        f"pawl_rank_waiting_seconds_total{{rank={rank},replica={replica}}}" for replica in (0, 2) for rank in (0, 1)
    }


class StillContext(FakeEngine):
    """A context outside any event loop: no time passes."""

    def now(self) -> float:
        return 0.0


def test_histogram_buckets_never_fall(client: httpx.Client) -> None:
    client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 4})
    text = client.get("/metrics").text
    for name in ("request_duration", "time_to_first_token", "time_per_output_token"):
        bucket = rf'gen_ai_server_{name}_seconds_bucket{{gen_ai_operation_name="text_completion"[^}}]*}} (\d+)'
        counts = [int(count) for count in re.findall(bucket, text)]
        assert counts == sorted(counts)
        assert counts[-1] >= 1


def test_durations_are_apart_by_what_requests_are_for() -> None:
    message = {"role": "user", "content": "hello"}
    with Served() as served, httpx.Client(base_url=served.url) as client:
        for _ in range(2):
            client.post("/v1/chat/completions", json={"messages": [message], "max_tokens": 3}).raise_for_status()
        client.post("/generate", json={"text": "hello", "sampling_params": {"max_new_tokens": 3}}).raise_for_status()
        numbers = samples(client.get("/metrics").text)
    model = "gen_ai_provider_name=pawl,gen_ai_request_model=echo"
    counts = {
        operation: numbers[f"gen_ai_server_request_duration_seconds_count{{gen_ai_operation_name={operation},{model}}}"]
        for operation in ("chat", "text_completion", "embeddings")
    }
    assert counts == {"chat": 2, "text_completion": 1, "embeddings": 0}
    vector = SamplingParameters(max_new_tokens=0, embed=True)
    assert Submit(request=0, rid="", text="hello", sampling=vector).operation is Operation.EMBEDDINGS


# ---- a whole server ----

PROMPT = "the same words once more, " * 20


@pytest.fixture(scope="module")
def ghost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a served ghost that has had some work: ends of three kinds, a cached prompt, a session, a pause."""
    settings = {"model": "ghost", "trace_dir": str(tmp_path_factory.mktemp("trace"))}
    with (
        ghost_server(load_ghost(build_config(settings)), **settings) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=60.0, verify=False) as client,
    ):
        for _ in range(3):
            assert generate(client, PROMPT, 20)["meta_info"]["completion_tokens"] == 20
        assert client.post("/generate", json={"text": ""}).status_code == 400
        assert client.post("/open_session", json={"session_id": "secret", "capacity_of_str_len": 50}).status_code == 200
        yield client


def generate(client: httpx.Client, prompt: str, count: int) -> Any:
    sampling = {"max_new_tokens": count, "temperature": 0.0, "ignore_eos": True}
    return client.post("/generate", json={"text": prompt, "rid": "", "sampling_params": sampling}).json()


def test_prompt_tokens_are_computed_or_cached_and_the_steps_say_which(ghost: httpx.Client) -> None:
    numbers = samples(ghost.get("/metrics").text)
    tokens = {kind: numbers[f"pawl_tokens_total{{kind={kind}}}"] for kind in ("prefill", "cached", "generated")}
    assert tokens["cached"] == numbers["pawl_cached_tokens_total"] > 0
    assert tokens["prefill"] + tokens["cached"] == numbers["pawl_prompt_tokens_total"]
    assert tokens["generated"] == numbers["pawl_generated_tokens_total"] == 60


def test_each_step_has_a_duration_and_each_phase_its_seconds(ghost: httpx.Client) -> None:
    numbers = samples(ghost.get("/metrics").text)
    assert numbers["pawl_step_duration_seconds_count"] == numbers["pawl_steps_total"] >= 60
    for phase in ("receive", "plan", "launch", "commit"):
        assert numbers[f"pawl_step_phase_seconds_total{{phase={phase}}}"] > 0


def test_pages_are_in_one_class_each(ghost: httpx.Client) -> None:
    numbers = samples(ghost.get("/metrics").text)
    pages = ghost.get("/server_info").json()["internal_states"][0]["pages"]
    assert sum(count for name, count in numbers.items() if name.startswith("pawl_pages{")) == pages["total"]


def test_what_has_not_happened_yet_is_there_as_zero(ghost: httpx.Client) -> None:
    """A series that begins at 1 has no increase that Prometheus could see."""
    numbers = samples(ghost.get("/metrics").text)
    states = [state for state in State if not state.terminal and state is not State.NEW]
    assert [numbers[f"pawl_requests{{state={state.name.lower()}}}"] for state in states] == [0] * len(states)
    ends = {cause: numbers[f"pawl_requests_ended_total{{cause={cause}}}"] for cause in FINISH_CAUSES | ABORT_CAUSES}
    assert {cause: count for cause, count in ends.items() if count} == {Cause.LENGTH: 3, Cause.INVALID: 1}


def test_what_an_operator_has_done_shows(ghost: httpx.Client) -> None:
    assert samples(ghost.get("/metrics").text)["pawl_paused"] == 0
    ghost.post("/pause_generation", json={"mode": "in_place"})
    ghost.post("/slow_down", json={"forward_sleep_time": 0.25})
    ghost.post("/update_weight_version", json={"new_version": 'a "new"\\one'})
    numbers = samples(ghost.get("/metrics").text)
    assert numbers["pawl_paused"] == 1
    assert numbers["pawl_step_delay_seconds"] == 0.25
    assert numbers["pawl_max_running_requests"] == 256
    assert numbers['pawl_weights_info{state=serving,version=a "new"\\one}'] == 1
    assert numbers["pawl_sessions{phase=open}"] == 1
    ghost.post("/continue_generation", json={})
    ghost.post("/slow_down", json={"forward_sleep_time": None})
    ghost.post("/update_weight_version", json={"new_version": "default"})
    numbers = samples(ghost.get("/metrics").text)
    assert numbers["pawl_paused"] == numbers["pawl_step_delay_seconds"] == 0
    assert [name for name in numbers if name.startswith("pawl_weights_info")] == [
        "pawl_weights_info{state=serving,version=default}"
    ]


def test_names_keep_to_the_rules_of_prometheus_and_no_label_grows_with_what_clients_send(ghost: httpx.Client) -> None:
    text = ghost.get("/metrics").text
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        assert family.name.startswith(("pawl_", "gen_ai_server_", "process_")), family.name
        assert family.documentation.endswith("."), family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        # The parser takes `_total` off a counter's name, and calls it unknown where it is not there.
        if family.type == "counter":
            assert f"# TYPE {family.name}_total counter" in text
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        for sample in family.samples:
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    assert "secret" not in text
    assert set(labels) == {
        *("actor", "cause", "class", "item", "kind", "lane", "le", "model", "owner", "phase", "property", "reason"),
        *("state", "version", "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"),
    }


ONLY_SOME = {
    "pawl_replicas",
    "pawl_window_pages",
    "pawl_remote_prefill",
    "pawl_cache_tiers",
    *(name for _, name, _, _ in FROM_RANKS),
}
"""Of servers with several replicas, with windowed layers, with tiers below the device, and with ranks."""


def test_the_page_about_metrics_names_those_that_are_served(ghost: httpx.Client) -> None:
    page = (Path(__file__).parents[2] / "docs" / "observing.md").read_text()
    named = set(re.findall(r"`((?:pawl|gen_ai|process)_\w+)`", page))
    served = set(re.findall(r"^# TYPE (\w+) ", ghost.get("/metrics").text, re.MULTILINE))
    assert named == served | ONLY_SOME


def test_a_histogram_is_the_same_when_it_comes_out_of_json() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.1, 0.5, 7.0):
        histogram.observe(value)
    again = Histogram.of(histogram.plain())
    assert (again.bounds, again.counts, again.total) == ((0.1, 1.0), [1, 1, 1], pytest.approx(7.6))
