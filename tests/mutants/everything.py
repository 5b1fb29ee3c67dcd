"""All mutants."""

from __future__ import annotations

from tests.mutants.in_control import CONTROL
from tests.mutants.in_lifecycle import LIFECYCLE
from tests.mutants.in_memory import MEMORY
from tests.mutants.in_outputs import OUTPUTS
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (*MEMORY, *LIFECYCLE, *OUTPUTS, *CONTROL)
