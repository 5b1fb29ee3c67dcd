"""The agent of a node (`pawl node`) where Ray has placed it: a process of a Ray task, with which it ends.

Nothing of Pawl runs inside of Ray's own process, and no message of Pawl goes through Ray.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from pawl.gpu.children import environment, python


class AgentEnded(RuntimeError):
    """It has ended, and its head has not left: Ray starts the task again."""


def hold(address: str, keys: str, place: int, timeout_s: float) -> None:
    """The task: returns when the head at `address` has left. `keys` is the folder of the keys on this host. Raises
    AgentEnded."""
    words = [*python(__name__), address, keys, str(place), str(timeout_s)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, env=environment(), start_new_session=True) as process:
        status = process.wait()
    if status:
        raise AgentEnded(f"exit status {status}")


def _end_with_parent() -> None:
    """The end of the input is the end of the task: then this process ends as one that is asked to."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Be the agent."""
    from pawl.build.hosts.agent import serve
    from pawl.logs import configure_logs

    address, keys, place, timeout_s = sys.argv[1:]
    configure_logs("json", "info")
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    return serve(address, Path(keys), float(timeout_s), int(place))


if __name__ == "__main__":
    sys.exit(main())
