"""From the settings to what an engine is made of: parts in this process, or a replica in a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pawl.build.parts import Parts
from pawl.config import ServerConfig
from pawl.gpu.weights.locate import locate
from pawl.gpu.weights.report import Report, unheard

if TYPE_CHECKING:
    from pawl.build.replica_process import ReplicaProcess


def load(config: ServerConfig, report: Report = unheard) -> Parts | ReplicaProcess:
    """What the settings name; `report` hears how far it is."""
    if config.runtime == "processes":
        from pawl.build.replica_process import ReplicaProcess  # whoever runs in one process imports no ZeroMQ

        return ReplicaProcess(config, report)
    return load_here(config, report)


def load_here(config: ServerConfig, report: Report = unheard) -> Parts:
    """The parts of an engine in this process. Imported only now, each with what it needs: a ghost starts without
    PyTorch, and a name that cannot be is refused (ModelNotFound) before PyTorch is there."""
    report(0.0)
    if config.model == "ghost":
        from pawl.build.ghost import load_ghost

        return load_ghost(config)
    locate(config.model)
    from pawl.build.assembly import load_parts

    report(0.1)
    return load_parts(config, report)
