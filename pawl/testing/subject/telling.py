"""A counterexample told: as lines for a person, and as a script of plain calls that does without Pawl."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

from pawl.testing.subject.port import (
    Abort,
    Apply,
    Call,
    Flush,
    Look,
    Lost,
    Made,
    Output,
    Schedule,
    Scripted,
    Segment,
    Step,
    Submit,
)

WIDTH = 110
"""Characters of a comment in a script."""


def lines_of(calls: Sequence[tuple[Call, str]]) -> Iterator[str]:
    """One line for each call, with what came of it."""
    for call, came in calls:
        what = in_words(call)
        yield f"{what}: {came}" if came else what


def in_words(call: Call) -> str:
    """What a call does, for a person."""
    match call:
        case Made():
            return "the subject is made"
        case Submit(request=request):
            extra = "".join(
                f", {name} {value!r}"
                for name, value in (
                    ("stop tokens", list(request.stop_token_ids)),
                    ("priority", request.priority),
                    ("salt", request.salt),
                )
                if value
            )
            prompt, count = list(request.prompt), request.max_new_tokens
            return f"request {request.number} is submitted: prompt {prompt}, {count} new tokens{extra}"
        case Abort(request=request):
            return f"request {request} is aborted"
        case Schedule(number=number):
            return f"step {number} is scheduled"
        case Apply(number=number, tokens=tokens):
            return f"step {number} comes back with {dict(tokens)}"
        case Lost(number=number):
            return f"step {number} is lost"
        case Flush():
            return "the cache is flushed"
        case Look():
            return "the books"


def step_in_words(step: Step) -> str:
    """What was decided."""
    words = [segment_in_words(segment) for segment in step.segments] or ["nothing is computed"]
    if step.preempted:
        words.append(f"preempted: {', '.join(map(str, step.preempted))}")
    return "; ".join(words)


def segment_in_words(segment: Segment) -> str:
    end = segment.start + segment.count
    place = f"position {segment.start}" if segment.count == 1 else f"positions {segment.start} to {end - 1}"
    return f"request {segment.request} {place} on pages {[*segment.pages]}"


def output_in_words(output: Output) -> str:
    ended = f", and ends ({output.ended})" if output.ended else ""
    return f"request {output.request} is told {[*output.tokens]}{ended}"


def script_of(kind: type, calls: Sequence[tuple[Call, str]], error: str) -> str | None:
    """A program that makes these calls without Pawl, and shows the fault; None where the adapter does not say how calls
    are written. Raises ValueError where it says nothing of one of them."""
    if not issubclass(kind, Scripted):
        return None
    first = error.splitlines()[0].replace("\\", "\\\\").replace('"""', "'''")
    lines = [f'"""{first}', "", "Found by Pawl; what follows are plain calls.", '"""', ""]
    for number, (call, came) in enumerate(calls):
        lines += ["", *_comment(in_words(call))] if number else []
        lines += _plain(kind, call)
        if came:
            lines += _comment(f"-> {came}")
    lines += ["", *_comment(f"FAULT: {error}"), *_plain(kind, Look()), ""]
    return "\n".join(lines)


def _plain(kind: type[Scripted], call: Call) -> list[str]:
    try:
        return kind.script_of(call).rstrip().splitlines()
    except Exception as error:  # `case _` is missing, say
        raise ValueError(f"script_of({call!r:.80}): {type(error).__name__}: {error!s:.200}") from error


def _comment(words: str) -> list[str]:
    return [f"# {line}" for each in words.splitlines() for line in wrap(each, WIDTH)]
