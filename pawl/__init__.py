"""Pawl: an LLM serving engine you can check."""

import sys

__version__ = "0.1.0"
DISTRIBUTION = "pawl-engine"
"""The name under which pip knows Pawl. `pawl` on PyPI is somebody else's package."""


def pip_install(package: str) -> str:
    """The command that installs `package` where this Pawl runs, in a checkout as well as from a wheel."""
    return f"{sys.executable} -m pip install {package}"
