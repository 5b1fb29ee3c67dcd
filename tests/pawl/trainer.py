"""A trainer in a process of its own, as RLHF frameworks have it: rank 0 of a torch.distributed group, with the store.

It does what it reads, a JSON line each, and says what came of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

LIMIT = timedelta(seconds=60)


def main() -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import Backend, PrefixStore, _new_process_group_helper, _world

    # The system chooses a free port, and the store has it from then on: nobody can come between.
    store: Any = dist.TCPStore("127.0.0.1", 0, None, True, timeout=LIMIT, wait_for_workers=False)
    groups: dict[str, Any] = {}

    def do(command: dict[str, Any]) -> None:
        name = command["group"]
        match command["do"]:
            case "join":
                size = command["size"]
                groups[name], _ = _new_process_group_helper(
                    size, 0, [], Backend("gloo"), PrefixStore(name, store), group_name=name, timeout=LIMIT
                )
                _world.pg_group_ranks[groups[name]] = {rank: rank for rank in range(size)}
            case "send":
                for dtype, values in command["tensors"]:
                    dist.broadcast(torch.tensor(values, dtype=getattr(torch, dtype)), 0, group=groups[name])
            case "send file":
                from safetensors.torch import load_file

                tensors = load_file(command["path"])
                dtype = getattr(torch, command.get("dtype", "float32"))
                sent = [tensors[each].to(dtype) for each in command["names"]]
                for tensor in [torch.cat([each.flatten() for each in sent])] if command.get("flat") else sent:
                    dist.broadcast(tensor, 0, group=groups[name])
            case "leave":
                dist.destroy_process_group(groups.pop(name))

    print(json.dumps({"port": store.port}), flush=True)
    for line in sys.stdin:
        try:
            do(json.loads(line))
            answer: dict[str, Any] = {"done": True}
        except Exception as error:
            answer = {"done": False, "error": str(error)}
        print(json.dumps(answer), flush=True)


class Trainer:
    """Tells the process what to do, and hears what came of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port: int = self.answer()["port"]

    def begin(self, do: str, group: str, **what: Any) -> None:
        """Do this; `answer` is to follow."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, "group": group, **what}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What came of it."""
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def kill(self) -> None:
        """As `kill -9` does."""
        self._process.kill()
        self._process.wait()


@contextmanager
def trainer_process() -> Iterator[Trainer]:
    """A trainer, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield Trainer(process)
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
