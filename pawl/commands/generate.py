"""`pawl generate`: answers prompts with an engine inside this process."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pawl.commands.failures import UsageError
from pawl.commands.settings import SERVER_ONLY, SHOWN_ALONE, add_sampling_flags, prepared, running_engine, sampling_of
from pawl.flags import add_flags

if TYPE_CHECKING:
    from pawl.engine import Completion

MOST_CHARACTERS = 64 << 20
"""Of all prompts together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Prompts, how they are read, how answers are written, sampling, and the engine's settings."""
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="text to go on from; without any, standard input")
    parser.add_argument("--file", type=Path, help="read prompts from this file, one a line")
    parser.add_argument(
        "--lines", action="store_true", help="each line of standard input is a prompt, not all of it one"
    )
    parser.add_argument("--chat", action="store_true", help="put each prompt into the model's chat template")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with tokens, usage and timing")
    add_sampling_flags(parser)
    add_flags(parser, without=SERVER_ONLY, shown=SHOWN_ALONE)


def run(arguments: argparse.Namespace) -> int:
    """Print every answer, in the order of the prompts."""
    from pawl.logs import progress

    prompts, sampling = read_prompts(arguments), sampling_of(arguments)
    config = prepared(arguments, quiet=True)
    drafts: list[Any] = (
        [[{"role": "user", "content": prompt}] for prompt in prompts] if arguments.chat else list(prompts)
    )
    with running_engine(config) as engine, progress("prompts", len(prompts)) as advance:
        completions = engine.generate(drafts, sampling, stop=arguments.stop, on_done=lambda *_: advance(1))
    for prompt, completion in zip(prompts, completions, strict=True):
        if arguments.json:
            sys.stdout.write(msgspec.json.encode(described(prompt, completion)).decode() + "\n")
        elif arguments.chat:
            print(completion.text)
        else:
            print(prompt + completion.text)
    return 0


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    """The prompts of this command line. Raises UsageError where there is none, or two places for them."""
    if arguments.prompts and arguments.file:
        raise UsageError("prompts come from the command line or from --file, not from both")
    if arguments.prompts:
        return list(arguments.prompts)
    if arguments.file is None and sys.stdin.isatty():
        raise UsageError("no prompt: pawl generate 'The capital of France is'")
    text = _content(arguments.file)
    prompts = text.splitlines() if arguments.file or arguments.lines else [text.removesuffix("\n")]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise UsageError("no prompt: the input is empty")
    return prompts


def _content(file: Path | None) -> str:
    """The text of a file or of standard input. Raises OSError and UsageError."""
    name = "the input" if file is None else file
    try:
        with nullcontext(sys.stdin) if file is None else file.open(encoding="utf-8") as opened:
            text = opened.read(MOST_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from error
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"{name} has more than {MOST_CHARACTERS >> 20} million characters")
    return text


def described(prompt: str, completion: Completion) -> dict[str, Any]:
    """The JSON of one answer."""
    done = completion.done
    return {
        "prompt": prompt,
        "text": completion.text,
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "matched": done.matched,
        "usage": msgspec.to_builtins(done.usage),
        "seconds": round(done.timing.ended - done.timing.submitted, 6),
    }
