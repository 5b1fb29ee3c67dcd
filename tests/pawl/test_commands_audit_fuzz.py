"""Whatever a trace file holds, `pawl audit` ends with 0, 1, 2 or 3 and says why in a readable line.

Damage to the file is noticed by its hashes; damage below them, with hashes that are right again, reaches every judge.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pawl.actors.simulation.exploration import silence
from pawl.commands import audit
from pawl.lifecycle.trace.format import BLOCK, BLOCK_SIZE, FILE_SIZE, NO_BLOCK, sealed
from tests.lifecycle.story import write
from tests.pawl.test_commands_audit_forged import sound_run

Change = Callable[[bytes, random.Random], bytes]


def _flipped(data: bytes, source: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 8))):
        changed[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(changed)


def _overwritten(data: bytes, source: random.Random) -> bytes:
    at = source.randrange(len(data))
    new = source.choice((bytes(4), b"\xff" * 4, source.randbytes(6), b"\xc0", b"\xcb\x7f\xf8\0\0\0\0\0\0"))
    return data[:at] + new + data[at + len(new) :]


def _cut(data: bytes, source: random.Random) -> bytes:
    return data[: source.randrange(len(data))]


def _left_out(data: bytes, source: random.Random) -> bytes:
    at = source.randrange(len(data))
    return data[:at] + data[at + source.randint(1, 40) :]


def _twice(data: bytes, source: random.Random) -> bytes:
    at = source.randrange(len(data))
    return data[:at] + data[max(0, at - source.randint(1, 60)) :]


CHANGES: tuple[Change, ...] = (_flipped, _overwritten, _cut, _left_out, _twice)


def resealed(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The file with its payloads changed, and every hash right again."""
    made, chain, at = data[:FILE_SIZE], NO_BLOCK, FILE_SIZE
    while at < len(data):
        marker, actor, first, count, length, schema, _ = BLOCK.unpack(data[at : at + BLOCK.size])
        payload = change(data[at + BLOCK_SIZE : at + BLOCK_SIZE + length])
        at += BLOCK_SIZE + length
        fields = BLOCK.pack(marker, actor, first, count, len(payload), schema, chain)
        chain = hashlib.sha256(fields + payload).digest()
        made += sealed(fields + chain) + payload
    return made


def damaged(data: bytes, source: random.Random) -> bytes:
    """The file with a random damage, or one below its hashes."""
    change = source.choice(CHANGES)
    if source.random() < 0.3:
        return change(data, source)
    hit = source.randrange(4)
    blocks = iter(range(1 << 30))
    return resealed(data, lambda payload: change(payload, source) if next(blocks) == hit else payload)


@pytest.mark.parametrize("count", [400, pytest.param(100_000, marks=pytest.mark.slow)])
def test_whatever_a_file_holds_an_audit_ends_with_a_verdict_and_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    files = [write(tmp_path / str(seed), sound_run(seed), block=16).read_bytes() for seed in range(8)]
    source, verdicts = random.Random(count), Counter[int]()
    target = tmp_path / "trace-000000.pawl"
    arguments = argparse.Namespace(traces=[target], replay=True, recompute=None, json=False)
    for _ in range(count):
        target.write_bytes(damaged(source.choice(files), source))
        with silence():
            verdict = audit.run(arguments)
        assert verdict in (0, 1, 2, 3)
        line, *more = capsys.readouterr().out.splitlines()
        assert line.split()[0] in ("PASS", "VIOLATION", "INCOMPLETE", "CORRUPT")
        assert verdict == 0 or more, "it is said why"
        verdicts[verdict] += 1
    assert verdicts[3] > count // 10
    assert verdicts[1] > count // 100
