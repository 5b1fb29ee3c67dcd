"""Fields of a call that mean the same on every route of OpenAI's API, and their bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pawl.actors.sampling import SamplingFields

Priority = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Seconds = Annotated[float, Meta(gt=0.0, le=1e6)]
Rid = Annotated[str, Meta(max_length=128)]
Salt = Annotated[str, Meta(max_length=256)]
ModelName = Annotated[str, Meta(max_length=1024)]
AdapterName = Annotated[str, Meta(max_length=256)]
Note = Annotated[str, Meta(max_length=1024)]
"""The caller's own bookkeeping: taken, and of no effect on the result."""
Verbosity = Literal["low", "medium", "high"]
ObjectOfAny = Annotated[dict[str, Any], Meta(max_length=64)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """Usage so far with every chunk, as vLLM has it."""
    include_obfuscation: bool | None = None
    """OpenAI's padding against traffic analysis, which is not sent."""


class CallFields(SamplingFields, kw_only=True):
    """What every route of OpenAI's API takes beside the sampling."""

    model: ModelName | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Priority | None = None
    cache_salt: Salt | None = None
    rid: Rid | None = None
    request_id: Rid | None = None
    """vLLM's name of the same."""
    timeout_s: Seconds | None = None
    # The caller's own bookkeeping, and what could change the time but not the answer.
    user: Note | None = None
    metadata: ObjectOfAny | None = None
    safety_identifier: Note | None = None
    prompt_cache_key: Note | None = None
    prompt_cache_retention: Note | None = None
    service_tier: Note | None = None
