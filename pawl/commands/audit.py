"""`pawl audit TRACE ...`: 0 PASS, 1 VIOLATION, 2 INCOMPLETE, 3 CORRUPT; 4 there is nothing to judge, or to judge by."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pawl.commands.failures import NothingJudged, NoTrace, UsageError, exit_status, printable
from pawl.commands.trace import open_trace
from pawl.config import ServerConfig

if TYPE_CHECKING:
    from pawl.build.grammars import Folds
    from pawl.lifecycle.audit import Report
    from pawl.lifecycle.properties.base import Property
    from pawl.lifecycle.trace.reader import TraceReader
    from pawl.loops.recomputed import Recomputed

GRAVITY = (0, 2, 1, 3)
"""Numbers of verdicts, the gravest last: a trace that is cut short shows less than one with a fault."""
OF_THE_RUN = ""
"""The model that the trace names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The trace, and how to report."""
    parser.add_argument(
        "traces",
        nargs="*",
        type=Path,
        metavar="TRACE",
        help="a run's folder, one file, a folder of runs, whose newest is read, or one of replicas, all of which are "
        "(default: ~/.cache/pawl/traces); events of another scheduler as lines of JSON. Of several the hand-overs "
        "between them and the requests that several had are compared as well",
    )
    parser.add_argument(
        "--replay",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also make every decision again from the recorded inputs; takes about as long as the rest (default: on)",
    )
    parser.add_argument(
        "--recompute",
        nargs="?",
        const=OF_THE_RUN,
        metavar="MODEL",
        help="also compute every token and log-probability again, with the model of the run or this copy of it, and "
        "compare them bit for bit; for runs with --deterministic or the compiled kernels",
    )
    parser.add_argument("--json", action="store_true", help="the report as one JSON object")
    parser.epilog = (
        "exit status: 0 PASS, 1 VIOLATION, 2 INCOMPLETE, 3 CORRUPT; "
        "4 there is no trace to read, or not the model to compute it with"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the traces, print the reports; returns the gravest verdict's number."""
    traces: list[Path] = list(arguments.traces)
    if not traces and arguments.recompute and _is_trace(Path(arguments.recompute)):
        # The parser cannot know whether what follows --recompute is its MODEL or the TRACE.
        traces, arguments.recompute = [Path(arguments.recompute)], OF_THE_RUN
    traces = [each for path in traces or [Path(ServerConfig().trace_dir)] for each in replicas_in(path)]
    reports = [_report(path, arguments) for path in traces]
    told: list[dict[str, Any]] = [facts for _, facts, _ in reports]
    statuses = [status for status, _, _ in reports]
    together = _compared(traces) if len(traces) > 1 else {}
    for name, (facts, _) in together.items():
        told.append({name: facts})
        statuses.append(1 if facts["faults"] else 0)
    if arguments.json:
        plain = msgspec.json.encode(told[0] if len(traces) == 1 else told)
        sys.stdout.write(msgspec.json.format(plain.decode(), indent=1) + "\n")
    else:
        texts = [*(text for *_, text in reports), *(text for _, text in together.values())]
        print(printable("\n".join(texts)))
    return max(statuses, key=GRAVITY.index)


def replicas_in(path: Path) -> list[Path]:
    """The folders of the replicas, where `path` is that of an engine that had several and no run of its own is newer;
    else `path` itself."""
    from pawl.lifecycle.trace.format import run_folders

    folders = [folder for folder in sorted(path.glob("replica-*")) if folder.is_dir() and run_folders(folder)]
    own = run_folders(path) if folders else []
    newest = max((run_folders(folder)[-1].stat().st_mtime for folder in folders), default=0.0)
    return folders if folders and not (own and own[-1].stat().st_mtime > newest) else [path]


def _compared(paths: Sequence[Path]) -> dict[str, tuple[dict[str, Any], str]]:
    """What came of comparing traces of replicas with each other, facts and text: of hand-overs where there are prefill
    and decode replicas, of requests where several had the same one."""
    from pawl.lifecycle.hand_overs import matched, side_of
    from pawl.lifecycle.resumed import gone_on, replica_of
    from pawl.lifecycle.trace.reader import TraceReader

    traces = [path for path in paths if not _is_json(path)]
    before = list(_runs_before(traces))
    compared: dict[str, tuple[dict[str, Any], str]] = {}
    sides = [side for path in traces if (side := side_of(TraceReader(path))) is not None]
    of_lost = [side for path in before if (side := side_of(TraceReader(path))) is not None]
    sides += [side for side in of_lost if side.role == "prefill"]
    if len({side.role for side in sides}) > 1:
        found = matched(sides)
        text = f"hand-overs: {found.hand_overs} between these, of {found.pages} pages"
        compared["hand_overs"] = found._asdict(), _with(found.faults, text)
    again = gone_on(replica_of(TraceReader(path)) for path in (*before, *traces))
    if again.requests:
        text = f"requests that several of these had: {again.requests}"
        compared["gone_on"] = again._asdict(), _with(again.faults, text)
    return compared


def _with(faults: Iterable[str], text: str) -> str:
    return text + "".join(f"\n  violated: {fault}" for fault in faults)


def _runs_before(paths: Sequence[Path]) -> Iterator[Path]:
    """Of folders of runs those before the newest that went on while the newest of all were there: of replicas that were
    started again."""
    from pawl.lifecycle.trace.format import run_folders, trace_files

    began = min(filter(None, map(_began, paths)), default=0.0)
    for path in paths:
        for run in run_folders(path)[:-1] if path.is_dir() else ():
            if any(file.stat().st_mtime >= began for file in trace_files(run)):
                yield run


def _began(path: Path) -> float:
    """When the run did, seconds since the epoch; 0.0: nothing says so."""
    from pawl.lifecycle.records import Checkpoint, Started
    from pawl.lifecycle.trace.reader import TraceReader

    first = next(iter(TraceReader(path)), None)
    started = first.started if isinstance(first, Checkpoint) else first
    return started.wall if isinstance(started, Started) else 0.0


def _report(path: Path, arguments: argparse.Namespace) -> tuple[int, dict[str, Any], str]:
    """Of one trace: its verdict's number, the facts, and these for people."""
    import numpy as np

    from pawl.build.grammars import Folds
    from pawl.lifecycle.properties.grammar import GrammarIsAFold

    if _is_json(path):
        return _events(path, arguments)
    folds = Folds(arguments.recompute or None)
    also: list[Property] = [GrammarIsAFold(folds)]
    try:
        path = _run_at(path)
        # A trace may hold any number: what comes of it is compared, and needs no warning.
        with recomputing(arguments.recompute, path, folds) as words, np.errstate(all="ignore"):
            also += [words] if words is not None else []
            report = _judged(path, arguments.replay, also, words is None)
    except OSError as error:
        raise NoTrace(str(error)) from error
    facts, text = report.as_dict(), report.text()
    if words is not None:
        facts["recomputed"] = msgspec.to_builtins(words.tally)
        text += f"\n  computed again: {words.tally}"
    return int(report.verdict), facts, text


def _is_json(path: Path) -> bool:
    """Whether the file has events of a scheduler that is not ours: by its name, or as no trace begins like that."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".jsonl" or file.read(1) == b"{"


def _events(path: Path, arguments: argparse.Namespace) -> tuple[int, dict[str, Any], str]:
    """Of lines of JSON: judged by what can be judged from outside."""
    import numpy as np

    from pawl.lifecycle.audit import judge
    from pawl.lifecycle.outside.events import EventReader
    from pawl.lifecycle.outside.properties import NAMES, outside_properties

    if arguments.recompute is not None:
        raise UsageError("--recompute is for traces of this engine: events name no model")
    with np.errstate(all="ignore"):
        report = judge(path, EventReader, outside_properties())
    text = f"{report.text()}\n  judged by what is seen from outside: {', '.join(NAMES)}"
    return int(report.verdict), report.as_dict() | {"judged_by": NAMES}, text


def _is_trace(path: Path) -> bool:
    from pawl.lifecycle.trace.format import run_folders, trace_files

    return bool(path.match("trace-*.pawl") or run_folders(path) or trace_files(path))


def _run_at(path: Path) -> Path:
    """That file or run, or the newest run there: another may begin meanwhile."""
    from pawl.lifecycle.trace.reader import TraceReader

    return path if path.is_file() else TraceReader(path).files[0].parent


def _judged(path: Path, decide: bool, also: Sequence[Property], shown: bool) -> Report:
    """The report, decisions made again in a process of their own where that is quicker; `shown`: and how far it is."""
    from pawl.commands.beside import WORTH_IT, DecidedBeside
    from pawl.lifecycle.audit import audit
    from pawl.lifecycle.trace.reader import TraceReader
    from pawl.logs import share_done
    from pawl.loops.decision_log import OneDecisionLog

    long = sum(file.stat().st_size for file in TraceReader(path).files) >= WORTH_IT
    with share_done("audit") if long and shown else contextlib.nullcontext(lambda share: None) as told:
        if not (decide and long and (os.cpu_count() or 1) > 1):
            return audit(path, [OneDecisionLog(), *also] if decide else also, told)
        beside = DecidedBeside(path, told)

        def both(share: float) -> None:
            beside.poll()
            told(min(share, beside.share))

        return audit(path, [*also, beside], both)


@contextlib.contextmanager
def recomputing(model: str | None, path: Path, folds: Folds) -> Iterator[Recomputed | None]:
    """The property that the model of the run decides, where it was asked for, and of a ghost always: its answers are
    known without a file. `folds` has its vocabulary. Raises NothingJudged."""
    from pawl.build.recompute import model_of
    from pawl.lifecycle.properties.start import GHOST
    from pawl.lifecycle.recompute import is_reproducible
    from pawl.lifecycle.records import Checkpoint, Started
    from pawl.lifecycle.trace.reader import TraceReader
    from pawl.logs import progress
    from pawl.loops.recomputed import Recomputed

    first = next(iter(TraceReader(path) if model is None else open_trace(path)), None)
    started: Any = first.started if isinstance(first, Checkpoint) else first
    if model is None and not (isinstance(started, Started) and started.config.get("backend") == GHOST):
        yield None
        return
    if not isinstance(started, Started):
        raise NothingJudged("the trace does not begin with the start of an engine, so it names no model")
    if not is_reproducible(started):
        yield Recomputed(None)
        return
    with progress("tokens", max(1, _num_tokens(open_trace(path)))) as advance:
        try:
            compute = model_of(started, model or None, advance, folds)
        except Exception as error:
            if exit_status(error) is None:
                raise
            raise NothingJudged(str(error)) from error
        yield Recomputed(compute)


def _num_tokens(reader: TraceReader) -> int:
    """Tokens of prompts and outputs: about as many are computed."""
    from pawl.lifecycle.records import StepCommitted, Submitted

    return sum(len(record.tokens) // 4 for record in reader if isinstance(record, Submitted | StepCommitted))
