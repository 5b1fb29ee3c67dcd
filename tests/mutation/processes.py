"""Work spread over forks of this process, which know all that it knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import TypeVar

Item = TypeVar("Item")


def in_processes(count: int, items: Sequence[Item], work: Callable[[Item], bytes]) -> Iterator[bytes]:
    """What `work` says of each item, as it comes; it says something. Raises EOFError where a process ends before its
    work is done."""
    context, readers = get_context("fork"), []
    for number in range(count):
        reader, writer = context.Pipe(duplex=False)
        context.Process(target=_work, args=(items[number::count], work, writer)).start()
        writer.close()  # so that the end of the process is the end of what it tells
        readers.append(reader)
    while readers:
        for reader in wait(readers):
            told = reader.recv_bytes()
            if told:
                yield told
            else:
                readers.remove(reader)


def _work(items: Sequence[Item], work: Callable[[Item], bytes], writer: Connection) -> None:
    for item in items:
        writer.send_bytes(work(item))
    writer.send_bytes(b"")
