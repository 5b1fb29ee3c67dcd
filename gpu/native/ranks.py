"""Ranks of the compiled kernels: the memory in which they meet (see `communicator.h`).

One process makes a `Segment` for one life of a group of ranks, and tells each of them its address. No file is made: the
memory lives as long as somebody has it open, and goes with the last, however that one ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import sys
import weakref

from pawl.gpu.native.address import Address
from pawl.gpu.native.bindings import load_library
from pawl.gpu.native.build import NativeUnavailable

MOST_RANKS = 32
_HEADER = struct.Struct("=QI")
"""Life and number of ranks (`SegmentHeader`)."""
_HEADER_BYTES = 4096


class RanksLost(RuntimeError):
    """A rank is gone, or did not come in time. No step can be computed before there is a new group."""


class Segment:
    """Memory of one life of a group."""

    def __init__(self, ranks: int, life: int) -> None:
        """Raises NativeUnavailable where memory cannot be shared so, and for more ranks than have a place."""
        if ranks > MOST_RANKS:
            raise NativeUnavailable(f"{ranks} ranks, of at most {MOST_RANKS}")
        if sys.platform != "linux":
            raise NativeUnavailable("ranks share memory as Linux does")
        try:
            file = os.memfd_create("pawl-ranks", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise NativeUnavailable(f"no memory that ranks can share: {error}") from error
        self.close = weakref.finalize(self, os.close, file)
        """Nobody joins afterwards; those who have joined keep what they share."""
        os.fchmod(file, 0o600)
        os.ftruncate(file, _HEADER_BYTES)
        # What a rank has mapped cannot be taken away under it.
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        os.pwrite(file, _HEADER.pack(life, ranks), 0)
        self.address = Address(f"/proc/{os.getpid()}/fd/{file}", life, ranks)


class Joined:
    """One rank's place in a segment, for all backends that it makes."""

    def __init__(self, address: Address, rank: int, timeout_s: float) -> None:
        """`timeout_s`: the most that this rank waits for another, in a step, before the group is lost. Raises
        NativeUnavailable where the place cannot be had: it is another life's, or taken."""
        self._library = load_library()
        handle = ctypes.c_void_p()
        place = os.fsencode(address.path), address.life, rank, address.ranks
        message = self._library.join(*place, timeout_s, ctypes.byref(handle))
        if message is not None:
            raise NativeUnavailable(message.decode())
        self.handle = handle
        self.leave = weakref.finalize(self, self._library.leave, handle)
        """The others learn that this rank does not come again. Not before its backends are closed."""

    def meet(self, times: int = 1) -> None:
        """Wait until all ranks have called this, `times` times. Raises RanksLost."""
        _raise_lost(self._library.meet(self.handle, times))

    @property
    def waited_s(self) -> float:
        """Seconds that this rank has waited for others in its steps: those of one of its threads."""
        return float(self._library.waited(self.handle)) / 1e9

    def check(self) -> None:
        """Raises RanksLost once a rank was lost."""
        _raise_lost(self._library.lost(self.handle))


def _raise_lost(reason: bytes | None) -> None:
    if reason is not None:
        raise RanksLost(reason.decode())
