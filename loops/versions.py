"""What versions of the weights are called."""

from __future__ import annotations

from typing import Annotated

import msgspec

VersionName = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
DEFAULT_VERSION = "default"
"""What replies call weights that nobody has named."""
