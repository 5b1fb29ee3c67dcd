"""Frames of a child go through its standard output, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys

CHATTY = """
import os
from pawl.gpu.frames import read_frame, streams_of_child, write_frame
source, target = streams_of_child()
os.write(1, b"a library")
print("Python", flush=True)
write_frame(target, read_frame(source))
"""


def test_what_a_library_prints_is_no_part_of_the_frames() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", CHATTY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as child:
        out, errors = child.communicate(b"\x05\0\0\0hello")
    assert out == b"\x05\0\0\0hello"
    assert errors == b"a libraryPython\n"
