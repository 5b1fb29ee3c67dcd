"""What calls of an engine without a server are made of: prompts as their callers write them, and what comes back."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

from pawl.actors.messages.generate import Done
from pawl.actors.sink import Delta, Inbox
from pawl.lifecycle.states import ABORT_CAUSES, Cause

Prompt: TypeAlias = str | Sequence[int] | Sequence[dict[str, Any]]
"""Text, token ids, or chat messages for the model's template."""


class RequestFailed(RuntimeError):
    """A request ended without success. `cause` is its abort cause."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(f"{cause}: {message}" if message else str(cause))
        self.cause = cause
        self.message = message


class Completion:
    """The whole answer to one prompt."""

    def __init__(self, delta: Delta) -> None:
        if delta.done is None:
            raise ValueError("a completion is made from a request's last delta")
        self.text = delta.text
        self.tokens = delta.tokens
        self.logprobs = delta.logprobs
        self.prompt_logprobs = delta.prompt_logprobs
        self.done: Done = delta.done

    @property
    def finish_reason(self) -> str:
        """The cause's name: `length`, `eos`, `stop_token` or `stop_string`."""
        return str(self.done.cause)


class Signal(Inbox):
    """An inbox that tells a thread which request has something new."""

    def __init__(self, changed: queue.SimpleQueue[int], index: int, whole: bool = False) -> None:
        super().__init__(whole)
        self._changed = changed
        self._index = index

    def ready(self) -> None:
        self._changed.put(self._index)


async def take(inbox: Inbox) -> Delta | None:
    return inbox.take()


def stands_alone(prompts: Any) -> bool:
    """Whether this is one prompt (text, token ids, chat messages) and not a sequence of prompts."""
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Integral | dict))


def prompt_fields(prompt: Any) -> dict[str, Any]:
    """The prompt as the field of `Submit` that it belongs in."""
    if isinstance(prompt, str):
        return {"text": prompt}
    if len(prompt) > 0 and isinstance(prompt[0], dict):
        return {"chat": tuple(prompt)}
    return {"token_ids": tuple(int(token) for token in prompt)}


def check_end(delta: Delta) -> None:
    """Raises RequestFailed where a request ended without success."""
    if delta.refusal is not None:
        raise RequestFailed(delta.refusal.cause, delta.refusal.message)
    if delta.done is not None and delta.done.cause in ABORT_CAUSES:
        raise RequestFailed(delta.done.cause, delta.done.message)
