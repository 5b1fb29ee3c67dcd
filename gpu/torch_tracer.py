"""Records steps with torch.profiler, as Chrome traces (ui.perfetto.dev reads them).

The first `prepare` of a process imports much of PyTorch, for seconds, while the step waits for it.
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
from typing import BinaryIO

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pawl.gpu.profiler import ProfileOptions, ProfileRefused

_LIBRARY = Lock()
"""Held by the tracer that uses the library's profiler: there is one for the process, and two at a time end it."""
TAKEN = "another replica of this process is being profiled"


class TorchTracer:
    """`Tracer` by torch.profiler: operators and named steps on the host, kernels where there is a CUDA device."""

    def __init__(self) -> None:
        self._profile: profile | None = None
        self._holds = False

    def check(self, options: ProfileOptions) -> None:
        """See `Tracer.check`."""
        if not self._activities(options):
            raise ProfileRefused("activities: there is no CUDA device here; send CPU")
        folder = options.folder
        try:
            existing = next(path for path in (folder, *folder.parents) if path.exists())
        except OSError as error:
            raise ProfileRefused(f"output_dir: {error.strerror}") from error
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise ProfileRefused(f"output_dir: {existing} is no folder that this server may write")

    def _activities(self, options: ProfileOptions) -> list[ProfilerActivity]:
        found = [ProfilerActivity.CPU] if "CPU" in options.activities else []
        if "GPU" in options.activities and torch.cuda.is_available():
            found.append(ProfilerActivity.CUDA)
        return found

    def prepare(self, options: ProfileOptions) -> None:
        """See `Tracer.prepare`."""
        if not _LIBRARY.acquire(blocking=False):
            raise ProfileRefused(TAKEN)
        self._holds = True
        try:
            self._profile = profile(
                activities=self._activities(options),
                record_shapes=options.record_shapes,
                with_stack=options.with_stack,
                profile_memory="MEM" in options.activities,
            )
            self._profile.prepare_trace()
        except Exception:
            self._let_go()
            raise

    def begin(self) -> None:
        """See `Tracer.begin`."""
        assert self._profile is not None
        self._profile.start_trace()

    def span(self, name: str) -> AbstractContextManager[object]:
        """See `Tracer.span`."""
        return record_function(name)

    def end(self, path: Path) -> None:
        """See `Tracer.end`."""
        taken, self._profile = self._profile, None
        assert taken is not None
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what was launched belongs to its step
        try:
            taken.stop_trace()
        finally:
            self._let_go()
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
        taken, self._profile = self._profile, None
        if taken is not None:
            with suppress(Exception):
                taken.start_trace()
                taken.stop_trace()
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
