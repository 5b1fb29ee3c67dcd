"""The one error for what a client asked for and cannot have."""

from __future__ import annotations

from pawl.lifecycle.states import Cause


class InvalidRequest(ValueError):
    """A request that is refused before any work; `message` says what to change.

    `param` is the field at fault under its own name here, `status` the HTTP status, `cause` what the trace and the
    metrics count it as.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400, cause: Cause = Cause.INVALID) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.cause = cause
