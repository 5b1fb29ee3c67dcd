"""Settings in a YAML file, which a stranger may have written: as large as settings are, and no larger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pawl.gpu.weights.strangers import content_of

MOST_FILE_BYTES = 1 << 20
"""Of a file."""
MOST_VALUES = 10_000
"""In a file, in all."""


def _more_values(content: object, most: int) -> bool:
    """Whether a value consists of more than `most`: an alias of YAML counts as often as it is used."""
    left = [content]
    while left and most >= 0:
        most -= 1
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
    return most < 0


def read_settings(path: Path, refusal: Callable[..., Exception]) -> dict[str, Any]:
    """One mapping of names, with dashes or underscores, to values. Raises `refusal(reason)` where there is none, and
    `refusal(reason, name)` where a name is at fault."""
    import yaml  # only a server with a file pays for it

    try:
        written = content_of(path, refusal, MOST_FILE_BYTES)
    except OSError as error:
        raise refusal(f"{path}: {error.strerror}") from error
    try:
        content = yaml.safe_load(written)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-13-45
        raise refusal(f"{path} is not YAML: {error}") from error
    if _more_values(content, MOST_VALUES):
        raise refusal(f"{path} holds more than {MOST_VALUES} values")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise refusal(f"{path} must be a mapping of settings to values, such as 'port: 8000'")
    settings: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name in settings:
            raise refusal(f"{path} sets {name!r} twice", name)
        settings[name] = value
    return settings
