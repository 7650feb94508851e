"""Starting helper processes that import this copy of p2pinfer, whatever the current folder."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).parents[2]
"""Where ``p2pinfer`` was imported from: a checkout, or the environment's ``site-packages``."""


def python_command(module: str, *words: str) -> list[str]:
    """Return the command that runs one of our modules in a new process.

    Python puts the current folder before everything else on the import path, so that a
    ``numpy.py`` that happens to be there would run instead of numpy. ``-P`` leaves it out.
    """
    return [sys.executable, "-P", "-m", module, *words]


def python_environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment in which such a command finds this copy of p2pinfer.

    A checkout that runs without being installed was found in the current folder, which helpers
    do not search, so its path is added to PYTHONPATH. An installed copy is found anyway, and adding
    its path would put site-packages before Python's own library.
    """
    if _ROOT.name in {"site-packages", "dist-packages"}:
        return dict(base)
    others = [path for path in base.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = dict.fromkeys([str(_ROOT), *others])
    return {**base, "PYTHONPATH": os.pathsep.join(paths)}
