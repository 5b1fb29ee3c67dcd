"""The one error for what a client asked for and cannot have."""

from __future__ import annotations

from pawl.lifecycle.states import Cause

MAX_ECHO = 100
"""Characters of a client's own words that a message repeats."""


class InvalidRequest(ValueError):
    """A request that is refused before any work; `message` says what to change.

    `param` is the field at fault under its own name here, `status` the HTTP status, `cause` what the trace and the
    metrics count it as, `code` a word for programs where the cause says too little.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        cause: Cause = Cause.INVALID,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.cause = cause
        self.code = code


def beyond_context(context_length: int, num_prompt: int, max_new_tokens: int) -> InvalidRequest:
    """What is said to who asks for more tokens than the prompt leaves of the context."""
    return InvalidRequest(
        f"This model's maximum context length is {context_length} tokens. However, you requested "
        f"{num_prompt + max_new_tokens} tokens ({num_prompt} in the prompt, {max_new_tokens} for the completion). "
        "Please shorten the prompt or the completion.",
        param="max_new_tokens",
        cause=Cause.TOO_LONG,
    )


def clipped(text: str) -> str:
    """The beginning of a text that may quote a client at length."""
    return text if len(text) <= 2 * MAX_ECHO else f"{text[: 2 * MAX_ECHO]}…"


def quoted(text: str) -> str:
    """A client's own words for a message: in quotes, cut where they are long."""
    return repr(text) if len(text) <= MAX_ECHO else f"{text[:MAX_ECHO]!r}… ({len(text)} characters)"
