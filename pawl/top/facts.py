"""What the upper part of the screen says: one row for each subject, words that wrap where the screen is narrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from pawl.top.reading import Reading, Watched, at, number, objects
from pawl.top.text import Line, Span, Style, clean, width_of

LABEL = 10
"""Cells of the first column."""
BAR = 20
BAR_PARTS = (("owned", "#"), ("cached", "="), ("deferred", "+"), ("quarantined", "x"))
"""Pages by owner in the bar; what is left is free."""
PHASES = ("receive", "plan", "launch", "commit")
Row: TypeAlias = tuple[str, Sequence[Span]]
"""A subject, and what is said of it; each span is a piece that is not broken."""


def facts(watched: Watched, width: int) -> list[Line]:
    """All rows, wrapped."""
    reading = watched.last
    if reading is None:
        return []
    return [line for label, pieces in _rows(watched, reading) for line in _wrapped(label, pieces, width)]


def _rows(watched: Watched, reading: Reading) -> Iterator[Row]:
    yield "health", _health(reading)
    trouble = _trouble(reading)
    if trouble:
        yield "trouble", trouble
    if "error" in reading.state:
        yield "scheduler", [Span(f"does not answer: {reading.state['error']}", Style.BAD)]
        return
    states = at(reading.state, "requests")
    counted = [_count(name, value) for name, value in sorted(states.items())] if isinstance(states, dict) else []
    ages = [_count(name, reading.number(name)) for name in ("running", "waiting")]
    yield "requests", [*ages, Span(f"open {_whole(number(reading.server, 'open_requests'))}"), *counted]
    causes = at(reading.state, "counters", "by_cause")
    if isinstance(causes, dict) and causes:
        yield "ended", [_count(name, value) for name, value in sorted(causes.items(), key=lambda item: item[0])]
    yield "tokens/s", _throughput(watched, reading)
    yield "steps", _steps(watched, reading)
    yield "pages", _pages(reading)
    for name in ("window_pages", "tiers", "sessions", "adapters", "weights"):
        shown = _anything(at(reading.state, name))
        if shown:
            yield name.replace("_", " ")[:LABEL], shown
    mail = _mailboxes(reading)
    if mail:
        yield "mailboxes", mail


def _health(reading: Reading) -> Sequence[Span]:
    health = reading.health
    status = str(at(health, "status") or "unknown")
    style = Style.GOOD if status == "ok" else Style.WARN if status == "paused" else Style.BAD
    pieces = [Span(status, style)]
    pieces += [Span(f"trace {each}") for each in [at(health, "trace")] if isinstance(each, str)]
    for name, told in (
        ("oldest_step_s", "oldest step"),
        ("silent_s", "silent"),
        ("longest_freeze_s", "longest freeze"),
    ):
        if number(health, name) > 0:
            pieces.append(Span(f"{told} {seconds(number(health, name))}"))
    return pieces


def _trouble(reading: Reading) -> Sequence[Span]:
    """What should never be."""
    violations = at(reading.state, "violations")
    broken = violations.items() if isinstance(violations, dict) else ()
    pieces = [_count(f"violated {name}", count, Style.BAD) for name, count in broken]
    if reading.number("trace_gaps"):
        pieces.append(Span(f"trace lost {_whole(reading.number('trace_gaps'))}", Style.BAD))
    for name, actor in _actors(reading):
        if at(actor, "alive") is False:
            pieces.append(Span(f"{name} is gone", Style.BAD))
        if number(actor, "contained"):
            pieces.append(Span(f"{name} failed {_whole(number(actor, 'contained'))}", Style.WARN))
    return pieces


def _throughput(watched: Watched, reading: Reading) -> Sequence[Span]:
    paths = (
        ("computed", ("steps", "prefill_tokens")),
        ("cached", ("counters", "cached_tokens")),
        ("generated", ("counters", "generated_tokens")),
    )
    pieces = [Span(f"{name} {_rate(watched.rate(*path))}") for name, path in paths]
    computed, cached = reading.number("steps", "prefill_tokens"), reading.number("counters", "cached_tokens")
    if computed + cached:
        pieces.append(Span(f"hit rate {cached / (computed + cached):.0%}"))
    return pieces


def _steps(watched: Watched, reading: Reading) -> Sequence[Span]:
    steps = watched.rate("counters", "steps")
    pieces = [Span(f"{_rate(steps)}/s"), Span(f"in flight {_whole(reading.number('in_flight'))}")]
    if steps:
        lasted = watched.rate("steps", "duration_seconds", "total")
        pieces += [Span(f"each {seconds(lasted / steps)}")] if lasted is not None else []
        spent = [(phase, watched.rate("steps", "phase_seconds", phase)) for phase in PHASES]
        pieces += [Span(f"{phase} {seconds(each / steps)}") for phase, each in spent if each is not None]
    if delay := reading.number("forward_sleep_time"):
        pieces.append(Span(f"each delayed by {seconds(delay)}", Style.WARN))
    for name, told in (("retractions", "retractions"), ("steps_lost", "lost"), ("dropped_tokens", "tokens dropped")):
        if reading.number("counters", name):
            pieces.append(Span(f"{told} {_whole(reading.number('counters', name))}"))
    return pieces


def _pages(reading: Reading) -> Sequence[Span]:
    total, size = reading.number("pages", "total"), reading.number("pages", "page_size")
    if total <= 0:
        return [Span("unknown")]
    bar = ""
    for owner, mark in BAR_PARTS:
        bar += mark * round(BAR * min(max(reading.number("pages", owner) / total, 0), 1))
    pieces = [Span(f"[{bar[:BAR].ljust(BAR, '.')}]")]
    for owner, mark in (*BAR_PARTS, ("free", ".")):
        count = reading.number("pages", owner)
        if count or owner in ("owned", "cached", "free"):
            pieces.append(Span(f"{mark} {owner} {_whole(count)}"))
    slots = reading.number("slots", "total")
    return [
        *pieces,
        Span(f"of {_whole(total)} x {_whole(size)} tokens"),
        Span(f"slots {_whole(slots - reading.number('slots', 'free'))} of {_whole(slots)}"),
    ]


def _anything(value: Any) -> Sequence[Span]:
    """Whatever a server has to say of a subject: a number or a word for each member, or the names of objects; nothing
    where all are 0."""
    if isinstance(value, dict):
        if not any(value.values()):
            return []
        flat = [(name, each) for name, each in value.items() if isinstance(each, int | float | str)]
        return [Span(f"{name} {each}") if isinstance(each, str) else _count(name, each) for name, each in flat]
    listed = objects(value)
    return [Span(" ".join(str(each) for each in one.values() if isinstance(each, int | str))) for one in listed]


def _mailboxes(reading: Reading) -> Sequence[Span]:
    """Those in which something waits, or that have refused something."""
    pieces = []
    for name, actor in _actors(reading):
        waiting = sum(number(actor, f"waiting_{lane}") for lane in ("system", "control", "data"))
        refused = number(actor, "rejected")
        if waiting or refused:
            told = f"{name} {_whole(waiting)}" + (f" refused {_whole(refused)}" if refused else "")
            pieces.append(Span(told, Style.WARN if refused else Style.PLAIN))
    return pieces


def _actors(reading: Reading) -> Sequence[tuple[str, Any]]:
    actors = at(reading.server, "actors")
    return list(actors.items()) if isinstance(actors, dict) else []


def _count(name: str, value: Any, style: Style = Style.PLAIN) -> Span:
    return Span(f"{name} {_whole(number(value))}", style)


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def seconds(value: float) -> str:
    """A time in the unit in which it is a small number."""
    if value < 0.000995:
        return f"{value * 1e6:.0f} us"
    if value < 0.9995:
        return f"{value * 1000:.1f} ms" if value < 0.00995 else f"{value * 1000:.0f} ms"
    if value < 99.5:
        return f"{value:.1f} s"
    minutes = value / 60
    return f"{minutes:.0f} min" if minutes < 99.5 else f"{minutes / 60:.0f} h"


def _wrapped(label: str, pieces: Sequence[Span], width: int) -> list[Line]:
    """The row in as many lines as it takes."""
    lines: list[list[Span]] = []
    used = width
    for piece in pieces:
        size = width_of(clean(piece.text))
        if not lines or used + 2 + size > width:
            lines.append([Span((label if not lines else "").ljust(LABEL), Style.QUIET)])
            used = LABEL + size
        else:
            lines[-1].append(Span("  "))
            used += 2 + size
        lines[-1].append(piece)
    return list(lines)
