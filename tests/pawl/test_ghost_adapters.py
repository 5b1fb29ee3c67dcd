"""A whole server with adapters: routes and replies of SGLang and vLLM, names of models, and what each client gets."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from pawl.actors.text.ghost import ghost_vocabulary
from pawl.config import ConfigError, build_config
from pawl.engine import Engine, RequestFailed
from pawl.gpu.ghost.language import adapter_salt_of
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.step_runner import AdapterRefused
from pawl.http.server import EngineServer, open_socket
from tests.pawl.ghost_server import PATIENCE_S, audited_client, ghost_server, load_ghost

VOCABULARY = ghost_vocabulary()
SAMPLING = {"max_new_tokens": 6, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    with audited_client(tmp_path, lora_paths=("a=ghost:a",), max_loras_per_batch=2) as client:
        yield client


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """(an adapter is being read, it may go on)"""
    begun, may_end, load_adapter = threading.Event(), threading.Event(), Ghost.load_adapter

    def slow(runner: Ghost, slot: int, source: str) -> str:
        begun.set()
        assert may_end.wait(PATIENCE_S)
        return load_adapter(runner, slot, source)

    with monkeypatch.context() as patch:
        patch.setattr(Ghost, "load_adapter", slow)
        yield begun, may_end
        may_end.set()


def said(text: str, source: str | None, count: int = 6) -> list[int]:
    """What a ghost with this adapter says after a text."""
    return expected(VOCABULARY.encode(text).tolist(), count, adapter_salt_of(source) if source else 0)


def spelt(text: str, source: str | None, count: int = 6) -> str:
    return VOCABULARY.decode(said(text, source, count))


def load(client: httpx.Client, name: str, path: str, **fields: Any) -> httpx.Response:
    return client.post("/load_lora_adapter", json={"lora_name": name, "lora_path": path, **fields})


def unload(client: httpx.Client, name: str) -> httpx.Response:
    return client.post("/unload_lora_adapter", json={"lora_name": name})


def generate(client: httpx.Client, **fields: Any) -> Any:
    return client.post("/generate", json={"sampling_params": SAMPLING, **fields})


def test_prompts_of_one_call_have_an_adapter_each_or_none(client: httpx.Client) -> None:
    assert load(client, "b", "ghost:b").status_code == 200
    names = ["a", None, "b"]
    answers = generate(client, text=["hello"] * 3, lora_path=names).json()
    assert [answer["output_ids"] for answer in answers] == [said("hello", name and f"ghost:{name}") for name in names]
    assert generate(client, text="hello", lora_path="b").json()["output_ids"] == said("hello", "ghost:b")
    assert generate(client, text=["x", "y"], lora_path=["a"]).status_code == 400


def test_an_adapter_may_not_be_called_as_the_model_is(client: httpx.Client) -> None:
    """Requests of that name get the model itself, and would never reach it."""
    refused = load(client, "ghost", "ghost:c")
    assert (refused.status_code, refused.json()["success"]) == (400, False)
    assert "the model's own name" in refused.json()["error_message"]
    refused = client.post("/v1/load_lora_adapter", json={"lora_name": "ghost", "lora_path": "ghost:c"})
    assert refused.status_code == 400
    assert "the model's own name" in refused.json()["error"]["message"]
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["ghost", "a"]


def test_replies_to_loads_and_unloads_are_those_of_sglang(client: httpx.Client) -> None:
    reply = load(client, "b", "ghost:b", pinned=True)
    assert reply.json() == {"success": True, "loaded_adapters": {"a": "ghost:a", "b": "ghost:b"}}
    for refused, words in (
        (load(client, "a", "ghost:c"), "already loaded"),
        (load(client, "c", "ghost:c", pinned=True), "starvation"),
        (load(client, "c", "nowhere"), "are called ghost:NAME"),
        (unload(client, "nobody"), "not loaded"),
    ):
        assert (refused.status_code, refused.json()["success"]) == (400, False)
        assert words in refused.json()["error_message"]
        assert list(refused.json()["loaded_adapters"]) == ["a", "b"]
    assert unload(client, "a").json() == {"success": True, "loaded_adapters": {"b": "ghost:b"}}
    unknown = generate(client, text="hello", lora_path="c")
    assert (unknown.status_code, "never been loaded; loaded: b" in unknown.text) == (400, True)
    assert load(client, "a", "ghost:c").status_code == 200
    answer = generate(client, text="hello", lora_path="a").json()
    assert (answer["output_ids"], answer["meta_info"]["cached_tokens"]) == (said("hello", "ghost:c"), 0)


def test_vllms_routes_do_the_same(client: httpx.Client) -> None:
    body = {"lora_name": "b", "lora_path": "ghost:b"}
    reply = client.post("/v1/load_lora_adapter", json=body)
    assert (reply.status_code, "'b' added successfully" in reply.text) == (200, True)
    again = client.post("/v1/load_lora_adapter", json=body)
    assert (again.status_code, again.json()["error"]["type"]) == (400, "invalid_request_error")
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "b"}).status_code == 200
    assert client.post("/v1/unload_lora_adapter", json={"lora_name": "b"}).status_code == 404


@pytest.mark.parametrize(
    ("model", "lora_path"), [("ghost:a", None), ("a", None), ("ghost", "a"), (" ghost : a ", "unknown"), (None, "a")]
)
def test_a_model_is_named_with_its_adapter_in_either_engines_way(
    client: httpx.Client, model: str | None, lora_path: str | None
) -> None:
    named = {"model": model, "lora_path": lora_path}
    body = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True} | {k: v for k, v in named.items() if v}
    reply = client.post("/v1/completions", json=body | {"prompt": "hello"}).json()
    assert reply["choices"][0]["text"] == spelt("hello", "ghost:a")
    assert reply["model"] == ("ghost" if lora_path == "a" else model)
    chat = client.post("/v1/chat/completions", json=body | {"messages": [{"role": "user", "content": "hi"}]})
    assert chat.status_code == 200
    vector = client.post("/v1/embeddings", json={k: v for k, v in named.items() if v} | {"input": "hello"}).json()
    plain = client.post("/v1/embeddings", json={"input": "hello"}).json()
    assert vector["data"][0]["embedding"] != plain["data"][0]["embedding"]


def test_models_lists_adapters_with_where_they_come_from(client: httpx.Client) -> None:
    cards = client.get("/v1/models").json()["data"]
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("ghost", "ghost", None),
        ("a", "ghost:a", "ghost"),
    ]
    assert client.get("/v1/models/a").json() == cards[1]
    unknown = client.post("/v1/completions", json={"model": "b", "prompt": "hello"})
    assert (unknown.status_code, "this server has ghost, a" in unknown.text) == (404, True)
    assert client.get("/v1/models/ghost:b").status_code == 404
    assert client.post("/v1/completions", json={"model": "ghost:b", "prompt": "hello"}).status_code == 400


def test_a_server_without_adapters_says_how_to_have_them(tmp_path: Path) -> None:
    with audited_client(tmp_path) as client:
        for reply in (generate(client, text="hello", lora_path="a"), load(client, "a", "ghost:a")):
            assert (reply.status_code, "--enable-lora" in reply.text, "not enabled" in reply.text) == (400, True, True)


def test_choices_of_one_prompt_share_its_adapter_and_an_unload_waits_for_all_of_them(client: httpx.Client) -> None:
    body = {"model": "a", "prompt": "hello", "n": 4, "max_tokens": 300, "temperature": 0.0, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
            lines = stream.iter_lines()
            next(line for line in lines if line)
            client.post("/pause_generation", json={"mode": "in_place"})
            unloading = pool.submit(unload, client, "a")
            while len(client.get("/v1/models").json()["data"]) > 1:
                pass
            assert not unloading.done()
            client.post("/continue_generation", json={})
            rest = "".join(lines)
        assert rest.count('"finish_reason":"length"') == 4
        assert unloading.result().status_code == 200


def test_every_reply_is_of_one_adapter_whole_while_adapters_are_loaded_unloaded_and_loaded_again(
    tmp_path: Path,
) -> None:
    names = ("a", "b", "c", "d")
    sources = ("ghost:a", "ghost:b", "ghost:c")

    def ask(client: httpx.Client, seed: int) -> int:
        """Replies that were one adapter's own."""
        draw, good = random.Random(seed), 0
        for _ in range(25):
            name, text = draw.choice((None, *names)), draw.choice(("hello", "hello there", "what"))
            reply = generate(client, text=text, lora_path=name)
            if reply.status_code == 400:
                assert name is not None
                assert "loaded" in reply.text
                continue
            if reply.status_code == 503:  # its name is loaded again by none that asks when others have its place
                assert "others have taken its place" in reply.text, reply.text
                continue
            possible = [said(text, source) for source in (sources if name is not None else (None,))]
            assert reply.status_code == 200, reply.text
            assert reply.json()["output_ids"] in possible
            good += 1
        return good

    def change(client: httpx.Client, seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(25):
            name = draw.choice(names)
            reply = unload(client, name) if draw.random() < 0.4 else load(client, name, draw.choice(sources))
            assert reply.status_code in (200, 400)

    with audited_client(tmp_path, enable_lora=True, max_loras_per_batch=2, max_running=4) as client:
        for name in names:
            assert load(client, name, "ghost:a").status_code == 200
        with ThreadPoolExecutor(10) as pool:
            changes = [pool.submit(change, client, seed) for seed in range(3)]
            asked = [pool.submit(ask, client, seed) for seed in range(6)]
            assert sum(each.result() for each in asked) > 30
            for each in changes:
                each.result()


def test_an_engine_without_a_server_has_adapters() -> None:
    config = build_config({"model": "ghost", "trace": False, "lora_paths": ["a=ghost:a"]})
    with Engine(config) as engine:
        engine.load_adapter("b", "ghost:b")
        answers = engine.generate(["hello"] * 3, SAMPLING | {"ignore_eos": True}, adapter=["a", "", "b"])
        assert [list(each.tokens) for each in answers] == [said("hello", s) for s in ("ghost:a", None, "ghost:b")]
        engine.unload_adapter("b")
        with pytest.raises(RequestFailed, match="loaded: a"):
            engine.generate("hello", adapter="b")
        with pytest.raises(RequestFailed, match="not loaded"):
            engine.unload_adapter("b")


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["a="], "NAME=FOLDER"),
        (["{"], "lora_paths"),
        (["a=nowhere"], "ghost:NAME"),
        (["a=ghost:a", "a=ghost:b"], "already"),
        (["a=ghost:a", "ghost=ghost:b"], "the model's own name"),
    ],
)
def test_an_adapter_that_cannot_be_loaded_at_the_start_ends_it(paths: list[str], words: str) -> None:
    with (
        pytest.raises(ConfigError, match=words),
        Engine(build_config({"model": "ghost", "trace": False, "lora_paths": paths})),
    ):
        pass


def test_adapters_at_the_start_may_be_json_or_their_own_names() -> None:
    paths = ['{"lora_name":"a","lora_path":"ghost:a","pinned":true}', '{"name":"b","path":"ghost:b"}', "ghost:c"]
    with Engine(build_config({"model": "ghost", "trace": False, "lora_paths": paths})) as engine:
        named = {name: (each.source, each.pinned) for name, each in engine.gateway.adapters.items()}
    assert named == {"a": ("ghost:a", True), "b": ("ghost:b", False), "ghost:c": ("ghost:c", False)}


def test_a_stop_while_adapters_are_loaded_at_the_start_leaves_no_task(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config({"model": "ghost", "trace": False, "lora_paths": ("a=ghost:a",), "port": 0})
    begun, stopping, stop = threading.Event(), threading.Event(), Engine.stop

    def refused(runner: Ghost, slot: int, source: str) -> str:
        begun.set()
        assert stopping.wait(PATIENCE_S)
        raise AdapterRefused("its folder is gone")

    def stopped(engine: Engine) -> None:
        stopping.set()
        stop(engine)

    monkeypatch.setattr(Ghost, "load_adapter", refused)
    monkeypatch.setattr(Engine, "stop", stopped)

    async def run() -> int:
        server = EngineServer(config, lambda report: load_ghost(config))
        with open_socket(config.host, config.port) as listener:
            running = asyncio.ensure_future(server.run(listener, None))
            await asyncio.to_thread(begun.wait, PATIENCE_S)
            server.stop("the test is over")
            return await running

    assert asyncio.run(run()) == 0
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_what_is_loaded_shows_in_the_state_and_the_metrics(client: httpx.Client) -> None:
    assert load(client, "b", "ghost:b", pinned=True).status_code == 200
    state = client.get("/server_info", params={"detail": True}).json()["internal_states"][0]
    assert state["adapters"] == {"loading": 0, "ready": 2, "resting": 0, "draining": 0}
    told = {adapter["name"]: (adapter["state"], adapter["pinned"]) for adapter in state["loaded_adapters"]}
    assert told == {"a": ("ready", False), "b": ("ready", True)}
    assert 'pawl_adapters{phase="ready"} 2' in client.get("/metrics").text
    assert unload(client, "b").status_code == 200
    assert 'pawl_adapters{phase="ready"} 1' in client.get("/metrics").text


def test_an_adapter_that_was_unloaded_is_loaded_again_for_who_names_it_as_sglang_does(tmp_path: Path) -> None:
    paths = tuple(f"{name}=ghost:{name}" for name in "ab")
    with audited_client(tmp_path, lora_paths=paths, max_loras_per_batch=2, max_loaded_loras=2) as client:
        assert load(client, "c", "ghost:c").json()["loaded_adapters"] == {"b": "ghost:b", "c": "ghost:c"}
        both = generate(client, text=["hello"] * 2, lora_path=["a", "b"]).json()
        assert [answer["output_ids"] for answer in both] == [said("hello", "ghost:a"), said("hello", "ghost:b")]
        assert unload(client, "b").json()["loaded_adapters"] == {"a": "ghost:a"}
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: generate(client, text="hello", lora_path="b").json(), range(4)))
        assert [answer["output_ids"] for answer in answers] == [said("hello", "ghost:b")] * 4
        unload(client, "b")
        body = {"prompt": "hello", "max_tokens": 6, "temperature": 0.0}
        by_vllm = client.post("/v1/completions", json=body | {"model": "b"})
        assert by_vllm.status_code == 404
        by_sglang = client.post("/v1/completions", json=body | {"model": "ghost:b", "ignore_eos": True})
        assert by_sglang.json()["choices"][0]["text"] == spelt("hello", "ghost:b")


def test_an_adapter_that_cannot_be_loaded_again_is_told_to_who_names_it(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    unload(client, "a")

    def vanished(runner: Ghost, slot: int, source: str) -> str:
        raise AdapterRefused("its folder is gone")

    monkeypatch.setattr(Ghost, "load_adapter", vanished)
    refused = generate(client, text="hello", lora_path="a")
    assert refused.status_code == 400
    assert "its folder is gone" in refused.json()["error"]["message"]
    monkeypatch.undo()
    assert generate(client, text="hello", lora_path="a").json()["output_ids"] == said("hello", "ghost:a")


def test_a_call_that_names_more_adapters_than_may_be_loaded_is_refused_at_once(tmp_path: Path) -> None:
    paths = tuple(f"{name}=ghost:{name}" for name in "ab")
    with audited_client(tmp_path, lora_paths=paths, max_loras_per_batch=2, max_loaded_loras=2) as client:
        assert load(client, "c", "ghost:c").status_code == 200
        refused = generate(client, text=["hello"] * 3, lora_path=["a", "b", "c"])
        assert refused.status_code == 400
        assert "3 adapters, of which 2" in refused.json()["error"]["message"]
        assert [card["id"] for card in client.get("/v1/models").json()["data"][1:]] == ["b", "c"]


def test_a_wait_for_an_adapter_lasts_no_longer_than_the_request_may(
    client: httpx.Client, reading: tuple[threading.Event, threading.Event]
) -> None:
    unload(client, "a")
    late = generate(client, text="hello", lora_path="a", timeout_s=0.05)
    assert late.status_code == 408
    reading[1].set()
    assert generate(client, text="hello", lora_path="a").json()["output_ids"] == said("hello", "ghost:a")


def test_a_drain_ends_the_wait_for_an_adapter(reading: tuple[threading.Event, threading.Event]) -> None:
    reading[1].set()
    config = {"model": "ghost", "trace": False, "lora_paths": ("a=ghost:a",)}
    parts = load_ghost(build_config(config))
    with ThreadPoolExecutor(1) as pool:
        with ghost_server(parts, **config) as (host, port):
            client = httpx.Client(base_url=f"http://{host}:{port}", timeout=60.0)
            unload(client, "a")
            reading[0].clear()
            reading[1].clear()
            waits = pool.submit(lambda: generate(client, text="hello", lora_path="a"))
            assert reading[0].wait(PATIENCE_S)
            stopper = threading.Thread(target=lambda: reading[1].set() if waits.result(PATIENCE_S) else None)
            stopper.start()
        stopper.join()
        ended = waits.result()
    assert ended.status_code == 503
    assert "shutting down" in ended.json()["error"]["message"]
