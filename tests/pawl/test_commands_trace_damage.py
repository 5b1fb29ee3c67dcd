"""Whatever lies where a trace should be: every command that reads one ends with a status and says why in words."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pawl.cli import main
from pawl.lifecycle.audit import Verdict, audit
from pawl.lifecycle.export.jsonl import as_dict
from pawl.lifecycle.records import DECODER, ENCODER, Record
from pawl.lifecycle.trace.writer import TraceWriter
from tests.lifecycle.story import PLENTY, changed, sound_run, write
from tests.loops.test_replay import record_run

EXTREMES: tuple[Any, ...] = (
    *(0, 1, -1, 127, 255, 1 << 20, (1 << 31) - 1, 1 << 31, -(1 << 31), (1 << 53) + 1, (1 << 63) - 1, (1 << 64) - 1),
    *(0.0, -1.5, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", "x", "weights=2", "\x1b[2J", "\ud7ff" * 9, b"", b"abc", b"\xff" * 64, b"\x00" * 256),
    *(None, True, False, [], {}, [[]], {"loop": {}}, {"": None}),
)
COMMANDS: tuple[Callable[[Path, Path], list[str]], ...] = (
    lambda trace, folder: ["audit", str(trace)],
    lambda trace, folder: ["audit", "--json", "--no-replay", str(trace)],
    lambda trace, folder: ["replay", str(trace)],
    lambda trace, folder: ["trace", "show", str(trace), "-o", str(folder / "page.html")],
    lambda trace, folder: ["trace", "export", "jsonl", str(trace), "-o", str(folder / "lines")],
    lambda trace, folder: ["trace", "export", "chrome", str(trace), "-o", str(folder / "chrome")],
    lambda trace, folder: ["trace", "export", "otlp", str(trace), "-o", str(folder / "otlp")],
    lambda trace, folder: ["trace", "export", "scenario", str(trace), "-o", str(folder / "scenario")],
)
SOUND: list[list[Record]] = [
    DECODER.decode(ENCODER.encode(sound_run().records)),
    *(record_run(seed)[:limit] for seed, limit in ((0, 60), (1, 400), (2, 400))),
]


def _bent(value: Any, source: random.Random) -> Any:
    """The value with one thing in it changed, wherever that is."""
    if isinstance(value, list) and value and source.random() < 0.85:
        at = source.randrange(len(value))
        kind = source.random()
        if kind < 0.8:
            return [*value[:at], _bent(value[at], source), *value[at + 1 :]]
        return value[:at] + value[at + 1 :] if kind < 0.9 else [*value[:at], value[at], *value[at:]]
    if isinstance(value, dict) and value and source.random() < 0.85:
        key = source.choice(list(value))
        return value | {key: _bent(value[key], source)}
    if isinstance(value, bytes) and value and source.random() < 0.7:
        at = source.randrange(len(value))
        return value[:at] + bytes([source.choice((0, 1, 127, 128, 255))]) + value[at + source.randrange(5) :]
    if isinstance(value, int) and not isinstance(value, bool) and source.random() < 0.5:
        return max(-(1 << 63), min(value + source.choice((-1, 1, 2, 64)), (1 << 64) - 1))
    return source.choice(EXTREMES)


def forged(records: Sequence[Record], folder: Path, source: random.Random) -> Path:
    """A trace with a chain of its own, of records some of which are no such records any more."""
    plain: list[Any] = msgspec.msgpack.decode(ENCODER.encode(records))
    for _ in range(source.choice((1, 1, 1, 2, 5))):
        at = source.randrange(len(plain))
        match source.randrange(12):
            case 0:
                del plain[at]
            case 1:
                plain.insert(at, plain[source.randrange(len(plain))])
            case 2:
                other = source.randrange(len(plain))
                plain[at], plain[other] = plain[other], plain[at]
            case _:
                plain[at] = _bent(plain[at], source)
    writer = TraceWriter(folder, PLENTY)
    for record in plain:
        writer._payload += msgspec.msgpack.encode(record)
        writer._count += 1
        if source.random() < 0.1:
            writer.flush()
    writer.close()
    return writer.path


def torn(records: Sequence[Record], folder: Path, source: random.Random) -> Path:
    """A file whose bytes are not those that were written."""
    file = write(folder, records, block=source.choice((8, 1000)))
    data = bytearray(file.read_bytes())
    for _ in range(source.choice((1, 1, 3, 30))):
        at = source.randrange(max(len(data), 1))
        match source.randrange(4):
            case 0:
                del data[at:]
            case 1:
                data[at : at + source.randrange(200)] = source.randbytes(source.randrange(200))
            case 2:
                data[at:at] = data[source.randrange(len(data) + 1) :][: source.randrange(500)]
            case _:
                data[at : at + 1] = source.randbytes(1)
    file.write_bytes(bytes(data))
    return file


def lines(records: Sequence[Record], folder: Path, source: random.Random) -> Path:
    """What `trace export jsonl` writes, bent."""
    folder.mkdir()
    values = [as_dict(record) for record in records]
    for _ in range(source.choice((1, 2, 5))):
        at = source.randrange(len(values))
        values[at] = _bent(values[at], source)
    file = folder / "lines"
    text = b"\n".join(msgspec.json.encode(value, enc_hook=repr) for value in values)
    if source.random() < 0.2:
        at = source.randrange(len(text))
        text = text[:at] + source.choice((b"\xff", b"[" * 3000, b"\x00", b'{"record":', b"\n")) + text[at:]
    file.write_bytes(text)
    return file


def attack(folder: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """One damaged input, and one command that reads it."""
    source = random.Random(seed)
    records, kind = source.choice(SOUND), source.random()
    if kind < 0.15:
        command = ["trace", "import", str(lines(records, folder / str(seed), source)), str(folder / f"{seed}-made")]
    else:
        make = torn if kind < 0.35 else forged
        command = source.choice(COMMANDS)(make(records, folder / str(seed), source), folder)
    try:
        status = main(command)
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {' '.join(command)}") from error
    said = capsys.readouterr()
    assert status in (0, 1, 2, 3, 4), f"seed {seed}: {command}: {status}"
    told = (said.out + said.err).splitlines()
    assert status == 0 or told, f"seed {seed}: {command}: {status} without a word"
    assert "Traceback" not in said.out + said.err
    assert all(len(line) < 2500 or line.startswith(("{", " ")) for line in told), f"seed {seed}: {command}"


def test_damaged_traces_end_with_a_status_and_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(300):
        attack(tmp_path, seed, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(100))
def test_any_damage_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str], part: int) -> None:
    for seed in range(1000 * (part + 1), 1000 * (part + 2)):
        attack(tmp_path, seed, capsys)


def test_json_without_an_end_of_its_depth_is_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("[" * 100_000, '{"record":' * 100_000, '{"record": "Started", "config": ' + "[" * 100_000):
        (tmp_path / "lines").write_text(text + "\n")
        assert main(["trace", "import", str(tmp_path / "lines"), str(tmp_path / "made")]) == 1
        assert "line 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("label", "fields"),
    [
        ("submitted 1", {"row": (1 << 31) - 1}),
        ("started", {"num_pages": 1 << 62}),
        ("started", {"page_size": 0}),
        ("plan 1", {"slots": b"abc"}),
        ("plan 1", {"page_slots": b"\xff" * 4}),
    ],
)
def test_what_no_engine_records_is_never_sound(tmp_path: Path, label: str, fields: dict[str, Any]) -> None:
    report = audit(write(tmp_path, changed(sound_run(), label, **fields)))
    assert report.verdict in (Verdict.VIOLATION, Verdict.CORRUPT)
    assert report.findings
