"""`pawl trace export|import|show`: a trace in the formats of other tools, JSON lines back as a trace, and as a page."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from pawl.commands.failures import CommandFailed, NoTrace
from pawl.config import ServerConfig

if TYPE_CHECKING:
    from pawl.lifecycle.trace.reader import TraceReader

FORMATS = {
    "jsonl": "every record, one JSON object a line; can be imported again",
    "parquet": "every record, one table",
    "chrome": "requests, steps and pages over time, for ui.perfetto.dev and chrome://tracing",
    "otlp": "requests and steps as OpenTelemetry spans, OTLP in JSON",
    "scenario": "the requests as a workload of the simulator, for `pawl replay` and `pawl explore --workload`",
}
PLENTY = 1 << 50
"""Bytes: an imported trace is written whole."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The kinds of conversion."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="export|import|show")
    export = kinds.add_parser("export", help="write a trace in another format")
    export.add_argument("format", choices=FORMATS, help="; ".join(f"{name}: {text}" for name, text in FORMATS.items()))
    add_trace(export)
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="otherwise standard output")
    show = kinds.add_parser("show", help="write one static page that shows the run; open it in a browser")
    add_trace(show)
    show.add_argument(
        "-o", "--output", type=Path, metavar="FILE", default=Path("trace.html"), help="(default: %(default)s)"
    )
    into = kinds.add_parser("import", help="make a trace of JSON lines that `export jsonl` wrote")
    into.add_argument("file", type=Path, metavar="FILE", help="the lines; - is standard input")
    into.add_argument("folder", type=Path, metavar="FOLDER", help="the trace becomes a run in this folder")


def add_trace(parser: argparse.ArgumentParser, also: str = "") -> None:
    """Which trace is read; `also` says what else may be named."""
    parser.add_argument(
        "trace",
        nargs="?",
        type=Path,
        metavar="TRACE",
        help="a run's folder, one file, or a folder of runs, whose newest is read (default: ~/.cache/pawl/traces)"
        + also,
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert; returns 0, or 1 when the trace is damaged: what comes before the damage has been converted. Without a
    trace it is 4, as of every command that reads one."""
    with digested():
        return {"import": _import, "export": _export, "show": _show}[arguments.kind](arguments)


def open_trace(path: Path | None) -> TraceReader:
    """The trace at `path`, or the newest of the default folder. Raises NoTrace when there is none, or
    another version of Pawl wrote it."""
    from pawl.lifecycle.trace.reader import DamageKind, TraceReader

    try:
        reader = TraceReader(path or Path(ServerConfig().trace_dir))
    except OSError as error:
        raise NoTrace(str(error)) from error
    for damage in reader.check_start():
        if damage.kind is DamageKind.FOREIGN:
            raise NoTrace(damage.reason)
    return reader


def tell_damage(reader: TraceReader) -> int:
    """Say what is wrong with the files that were read; 1 when something is."""
    for damage in reader.damage:
        print(f"pawl: block {damage.block}: {damage.kind}: {damage.reason}", file=sys.stderr)
    return int(bool(reader.damage))


def _export(arguments: argparse.Namespace) -> int:
    reader = open_trace(arguments.trace)
    if arguments.format == "parquet":
        from pawl.lifecycle.export.parquet import ParquetUnavailable, export_parquet

        if arguments.output is None:
            raise CommandFailed("a Parquet table needs a file: --output FILE")
        try:
            export_parquet(reader, arguments.output)
        except ParquetUnavailable as error:
            raise CommandFailed(str(error)) from error
        return tell_damage(reader)
    if arguments.format == "scenario":
        return _export_scenario(reader, arguments.output)
    with _writing(arguments.output) as output:
        if arguments.format == "jsonl":
            from pawl.lifecycle.export.jsonl import export_jsonl

            export_jsonl(reader, output)
        else:
            output.write(msgspec.json.encode(_timeline_as(arguments.format, reader)).decode() + "\n")
    return tell_damage(reader)


def _export_scenario(reader: TraceReader, output: Path | None) -> int:
    from pawl.testing.scenario import NoScenario, recorded_scenario

    if output is None:
        raise CommandFailed("a scenario needs a file: --output FILE")
    try:
        scenario = recorded_scenario(reader)
    except NoScenario as error:
        raise CommandFailed(str(error)) from error
    scenario.save(output)
    shown = f"{scenario.property}: {scenario.explanation}" if scenario.property else "no property was broken"
    print(f"{len(scenario.workload.arrivals)} requests; {shown}\nto see it in the simulator: pawl replay {output}")
    return tell_damage(reader)


def _timeline_as(format_name: str, reader: TraceReader) -> dict[str, Any]:
    from pawl.lifecycle.export.chrome import chrome_trace
    from pawl.lifecycle.export.otlp import otlp_trace
    from pawl.lifecycle.export.timeline import timeline

    line = timeline(reader)
    return chrome_trace(line) if format_name == "chrome" else otlp_trace(line)


@contextlib.contextmanager
def digested() -> Iterator[None]:
    """Around what is done with records: they may be anything, and what is made of them was not meant for all of it."""
    try:
        yield
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError, MemoryError, RecursionError) as error:
        text = f"the trace holds what no engine records: {type(error).__name__}: {error!s:.300}"
        raise CommandFailed(text) from error


@contextlib.contextmanager
def _writing(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
    else:
        with path.open("w", encoding="utf-8") as output:
            yield output


def _import(arguments: argparse.Namespace) -> int:
    from pawl.lifecycle.export.jsonl import NotARecord, import_jsonl
    from pawl.lifecycle.trace.writer import TraceWriter

    source = sys.stdin if str(arguments.file) == "-" else arguments.file.open(encoding="utf-8")
    writer = TraceWriter(arguments.folder, PLENTY)
    count = 0
    try:
        with source:
            for record in import_jsonl(source):
                writer.append(record)
                count += 1
    except (NotARecord, UnicodeDecodeError) as error:
        raise CommandFailed(f"{arguments.file}: {error}") from error
    finally:
        writer.close()
    print(f"{count} records: {writer.path}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from pawl.lifecycle.audit import audit
    from pawl.lifecycle.export.timeline import timeline
    from pawl.viewer.page import render

    reader = open_trace(arguments.trace)
    line = timeline(reader)
    # The files that were found first: a folder of runs may have a newer one by now.
    report = audit(reader.files[0] if arguments.trace and arguments.trace.is_file() else reader.files[0].parent)
    arguments.output.write_text(render(line, report), encoding="utf-8")
    print(f"{report.verdict.name}: {arguments.output}")
    return 0
