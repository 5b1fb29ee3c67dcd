"""A whole server that has its weights from a trainer, a real process beside it, over torch.distributed with gloo.

The server is a ghost, whose weights are two numbers of 64 bits. The trainer sends them as signed ones, which gloo
knows.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pawl.actors.text.ghost import ghost_vocabulary
from pawl.actors.weight_groups import LATE
from pawl.gpu.ghost.oracle import expected
from pawl.gpu.ghost.weights import GhostWeights
from pawl.gpu.trainers.member import MISMATCH
from pawl.loops.weight_groups import JOINED, LEFT, UNKNOWN, WAS_LEFT
from tests.pawl.ghost_server import audited_client
from tests.pawl.trainer import Trainer, trainer_process

VOCABULARY = ghost_vocabulary()
FIRST, SECOND = "ghost.first", "ghost.second"
SHORT_S = 3.0
"""A limit that is to pass; longer than it takes to find out whether it does."""


@pytest.fixture(scope="module")
def trainer() -> Iterator[Trainer]:
    with trainer_process() as trainer:
        yield trainer


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    with audited_client(tmp_path, weight_version="v0") as client:
        yield client


@contextmanager
def in_thread(do: Callable[[], httpx.Response]) -> Iterator[Future[httpx.Response]]:
    """A request that is not waited for before the block ends."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(do)


def join(client: httpx.Client, port: int, group: str, **fields: Any) -> httpx.Response:
    body = {"master_address": "localhost", "master_port": port, "rank_offset": 1, "world_size": 2} | fields
    return client.post("/init_weights_update_group", json={"group_name": group, "backend": "gloo", **body})


def meet(client: httpx.Client, trainer: Trainer, group: str) -> None:
    """Both join."""
    trainer.begin("join", group, size=2)
    reply = join(client, trainer.port, group)
    assert (reply.status_code, reply.json()) == (200, {"success": True, "message": JOINED})
    assert trainer.answer()["done"]


def receive(client: httpx.Client, group: str, *names: str, **fields: Any) -> httpx.Response:
    described = {"names": names, "dtypes": ["uint64"] * len(names), "shapes": [[1]] * len(names)}
    return client.post("/update_weights_from_distributed", json={"group_name": group, **described, **fields})


def leave(client: httpx.Client, group: str) -> httpx.Response:
    return client.post("/destroy_weights_update_group", json={"group_name": group})


def numbers(source: str, *names: str) -> list[tuple[str, list[int]]]:
    """Tensors of a ghost's weights, as signed numbers."""
    tensors = GhostWeights.named(source).tensors
    return [("int64", tensors[name].view("int64").tolist()) for name in names]


def says(client: httpx.Client, source: str) -> bool:
    """Whether the server has these weights."""
    sampling = {"max_new_tokens": 5, "temperature": 0.0, "ignore_eos": True}
    answer = client.post("/generate", json={"text": "hello", "sampling_params": sampling}).json()
    salt = GhostWeights.named(source).salt
    return bool(answer["output_ids"] == expected(VOCABULARY.encode("hello").tolist(), 5, salt))


def test_what_a_trainer_broadcasts_is_served(client: httpx.Client, trainer: Trainer) -> None:
    meet(client, trainer, "first")
    assert join(client, trainer.port, "first").status_code == 400, "the engine is in it"
    for source, names in (("ghost:b", [FIRST, SECOND]), ("ghost:b+c", [SECOND])):
        trainer.begin("send", "first", tensors=numbers(source, *names))
        reply = receive(client, "first", *names, weight_version=source)
        assert (reply.status_code, reply.json()["success"]) == (200, True), reply.text
        assert trainer.answer()["done"]
        assert says(client, source)
        assert client.get("/weight_version").json() == {"weight_version": source}
    trainer.begin(
        "send", "first", tensors=[("int64", [numbers("ghost:x+y", each)[0][1][0] for each in (FIRST, SECOND)])]
    )
    assert receive(client, "first", FIRST, SECOND, load_format="flattened_bucket").status_code == 200
    assert trainer.answer()["done"]
    assert says(client, "ghost:x+y")
    assert (leave(client, "first").json(), leave(client, "first").json()["message"]) == (
        {"success": True, "message": LEFT},
        UNKNOWN,
    )


def test_tensors_that_the_model_does_not_have_are_refused_before_any_is_received(
    client: httpx.Client, trainer: Trainer
) -> None:
    meet(client, trainer, "refused")
    trainer.begin("send", "refused", tensors=numbers("ghost:b", FIRST))
    reply = receive(client, "refused", FIRST, "ghost.third")
    assert (reply.status_code, "ghost.third" in reply.json()["message"]) == (400, True)
    # What was broadcast is not waited for, and is not taken for what comes next either.
    assert not trainer.answer()["done"]
    assert receive(client, "refused", FIRST).status_code == 400
    assert leave(client, "refused").status_code == 400
    assert says(client, "ghost")


def test_a_trainer_killed_between_two_tensors_leaves_the_old_weights(client: httpx.Client) -> None:
    with trainer_process() as trainer:
        meet(client, trainer, "killed")
        with in_thread(lambda: receive(client, "killed", FIRST, SECOND, weight_version="v1")) as receiving:
            trainer.begin("send", "killed", tensors=numbers("ghost:b", FIRST))
            assert trainer.answer()["done"], "the first has come"
            trainer.kill()
        assert receiving.result().status_code == 400
    assert says(client, "ghost")
    assert client.get("/weight_version").json() == {"weight_version": "v0"}
    assert leave(client, "killed").json()["message"] == UNKNOWN


def test_a_trainer_that_sends_more_than_it_said_harms_nobody(client: httpx.Client, trainer: Trainer) -> None:
    meet(client, trainer, "more")
    trainer.begin("send", "more", tensors=[("int64", [1, 2])])
    reply = receive(client, "more", FIRST)
    assert (reply.status_code, reply.json()["message"]) == (400, MISMATCH)
    trainer.answer()
    assert says(client, "ghost")
    assert leave(client, "more").status_code == 400


def test_a_group_can_be_left_while_it_receives_and_be_joined_again(client: httpx.Client, trainer: Trainer) -> None:
    meet(client, trainer, "left")
    with in_thread(lambda: receive(client, "left", FIRST, SECOND)) as receiving:
        trainer.begin("send", "left", tensors=numbers("ghost:b", FIRST))
        assert trainer.answer()["done"], "the first has come"
        assert leave(client, "left").status_code == 200
    assert (receiving.result().status_code, receiving.result().json()["message"]) == (400, WAS_LEFT)
    assert says(client, "ghost")
    with trainer_process() as another:
        meet(client, another, "left")
        another.begin("send", "left", tensors=numbers("ghost:c", FIRST))
        assert receive(client, "left", FIRST).status_code == 200
    assert says(client, "ghost:c")


@pytest.mark.slow
def test_who_does_not_come_is_not_waited_for_longer_than_the_limit(tmp_path: Path) -> None:
    with (
        audited_client(tmp_path, trainer_timeout_s=SHORT_S) as client,
        socket.socket() as nobody,
        trainer_process() as trainer,
    ):
        nobody.bind(("127.0.0.1", 0))
        assert join(client, nobody.getsockname()[1], "nobody").json()["message"] == LATE.format(SHORT_S)
        trainer.begin("join", "a third", size=3)
        reply = join(client, trainer.port, "a third", world_size=3)
        assert (reply.status_code, reply.json()["message"]) == (400, LATE.format(SHORT_S))
        assert leave(client, "a third").json()["message"] == UNKNOWN
        assert says(client, "ghost")


def test_where_the_engine_cannot_join_it_says_why(client: httpx.Client, trainer: Trainer) -> None:
    for fields, words in (
        ({"master_address": "example.org"}, "none of the trainer hosts"),
        ({"rank_offset": 2}, "a group of 2 has ranks up to 1"),
        ({"master_port": "70000"}, "65535"),
        ({"backend": "nccl"}, "must use gloo"),
    ):
        reply = join(client, trainer.port, "refused at once", **fields)
        assert (reply.status_code, words in reply.json()["message"]) == (400, True), reply.text
    for broken in ({"master_port": "x"}, {"rank_offset": 0}, {"group_name": ""}, {"backend": "mpi"}):
        assert join(client, trainer.port, "refused at once", **broken).status_code == 400
    assert receive(client, "never joined", FIRST).status_code == 400
