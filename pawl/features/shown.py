"""Features of what a client is shown of a request: of its text, and of its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pawl.features.row import Feature, Source

Values = Mapping[str, Any]
STOPS = ("stop_semantics", "stream_equals_result")


def _stopped(values: Values) -> bool:
    return bool(values.get("stop") or values.get("stop_after"))


def _shown(source: Source, values: Values) -> dict[str, Any]:
    """What stops some stays in their text; nobody wants the tokens of some others as text."""
    if not _stopped(values) and not values.get("stop_token_ids"):
        return {"silent": source.chance(0.06)}
    return {"include_stop": source.chance(0.3)}


def _stop_from(source: Source, values: Values) -> dict[str, Any]:
    """Half of the time from the token on that is to stop it."""
    if not _stopped(values) or not source.chance(0.3):
        return {}
    return {"stop_from": source.pick((values.get("stop_after") or 2, source.within(2, 4)))}


def _prompt(source: Source, values: Values) -> dict[str, Any]:
    return {"return_prompt": source.chance(0.1)}


FEATURES: tuple[Feature, ...] = (
    Feature("text shown", ("include_stop", "silent"), _shown, STOPS, settings=("text_options",)),
    Feature("stops from a token on", ("stop_from",), _stop_from, STOPS, settings=("text_options",)),
    Feature("prompt returned", ("return_prompt",), _prompt, ("stream_equals_result",), settings=("text_options",)),
)
