"""Records steps with PyTorch's profiler, as Chrome traces (ui.perfetto.dev reads them).

With the profiler itself: what `torch.profiler` wraps around it looks whether PyTorch has a compiler, and so loads it:
seconds of Python during which a step, and the event loop, wait.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import torch
from torch.autograd.profiler import profile, record_function

from pawl.gpu.profiler import ProfileOptions, ProfileRefused

_LIBRARY = Lock()
"""Held by the tracer that uses the library's profiler: there is one for the process, and two at a time end it."""
TAKEN = "another replica of this process is being profiled"


class TorchTracer:
    """`Tracer` by that profiler: operators and named steps on the host, kernels where there is a CUDA device."""

    def __init__(self) -> None:
        self._profile: Any = None
        """What records, if anything; the library has no types."""
        self._options: ProfileOptions | None = None
        self._holds = False

    def check(self, options: ProfileOptions) -> None:
        """See `Tracer.check`."""
        if not any(self._places(options)):
            raise ProfileRefused("activities: there is no CUDA device here; send CPU")
        folder = options.folder
        try:
            existing = next(path for path in (folder, *folder.parents) if path.exists())
        except OSError as error:
            raise ProfileRefused(f"output_dir: {error.strerror}") from error
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise ProfileRefused(f"output_dir: {existing} is no folder that this server may write")

    def _places(self, options: ProfileOptions) -> tuple[bool, bool]:
        """Whether the host is recorded, and a CUDA device."""
        return "CPU" in options.activities, "GPU" in options.activities and torch.cuda.is_available()

    def prepare(self, options: ProfileOptions) -> None:
        """See `Tracer.prepare`."""
        if not _LIBRARY.acquire(blocking=False):
            raise ProfileRefused(TAKEN)
        self._holds, self._options = True, options
        try:
            if options.warmup:
                self._enter(options)
        except Exception:
            self._let_go()
            raise

    def begin(self) -> None:
        """See `Tracer.begin`."""
        assert self._options is not None
        self._leave()
        self._enter(self._options)

    def _enter(self, options: ProfileOptions) -> None:
        host, device = self._places(options)
        made: Any = profile(
            use_cpu=host,
            use_device="cuda" if device else None,
            record_shapes=options.record_shapes,
            with_stack=options.with_stack,
            profile_memory="MEM" in options.activities,
        )
        made.__enter__()
        self._profile = made

    def _leave(self) -> Any:
        """Record nothing any more; what was recorded."""
        taken, self._profile = self._profile, None
        if taken is not None:
            taken.__exit__(None, None, None)
        return taken

    def span(self, name: str) -> AbstractContextManager[object]:
        """See `Tracer.span`."""
        return record_function(name)

    def end(self, path: Path) -> None:
        """See `Tracer.end`."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what was launched belongs to its step
        try:
            taken = self._leave()
        finally:
            self._let_go()
        assert taken is not None
        # The library writes a file that everybody may read, if not for the folder.
        with tempfile.TemporaryDirectory() as folder, _private(path) as file:
            plain = Path(folder, "trace.json")
            taken.export_chrome_trace(str(plain))
            with plain.open("rb") as source, gzip.open(file, "wb", 1) as packed:
                shutil.copyfileobj(source, packed)

    def save(self, path: Path, data: bytes) -> None:
        """See `Tracer.save`."""
        with _private(path) as file:
            file.write(data)

    def abandon(self) -> None:
        """See `Tracer.abandon`."""
        with suppress(Exception):
            self._leave()
        self._let_go()

    def _let_go(self) -> None:
        if self._holds:
            self._holds = False
            _LIBRARY.release()


@contextmanager
def _private(path: Path) -> Iterator[BinaryIO]:
    """A new file in the place of `path`, which only its owner may read, once it is whole; nothing where it is not."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
