"""Which tracer records a server's steps."""

from __future__ import annotations

from pawl.gpu.profiler import ProfileRefused, Tracer


def torch_tracer() -> Tracer:
    """The one that servers have. Raises ProfileRefused where there is no PyTorch."""
    try:
        from pawl.gpu.torch_tracer import TorchTracer
    except ImportError as error:
        raise ProfileRefused(f"profiles are made by PyTorch, which is not here: {error}") from error
    return TorchTracer()
