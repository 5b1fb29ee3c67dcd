"""The tracer of a server whose model is shared out among ranks."""

from __future__ import annotations

from pawl.gpu.profiler import ProfileOptions, ProfileRefused
from pawl.gpu.torch_tracer import TorchTracer


class RankTracer(TorchTracer):
    """Writes what is no recording."""

    def check(self, options: ProfileOptions) -> None:
        """Raises ProfileRefused."""
        raise ProfileRefused("ranks are processes of their own, and a profile is of one: serve without tp, pp and ep")
