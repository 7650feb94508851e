"""Starting further processes of p2pinfer: they import what this one does, whatever the folder."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).parents[2]
"""Where ``p2pinfer`` was imported from: a checkout, or the environment's ``site-packages``."""


def python_command(module: str, *words: str) -> list[str]:
    """Return the command that runs a module of ours in a process of its own.

    Python puts the current folder in front of everything that a module may import, so that a
    ``numpy.py`` which happens to lie there would run instead of numpy. ``-P`` leaves it out.
    """
    return [sys.executable, "-P", "-m", module, *words]


def python_environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment in which such a command finds this very p2pinfer.

    A checkout that is run without being installed was found in the current folder, which helpers
    do not look through; so they are told. What is installed is found in any case, and would go in
    front of Python's own library.
    """
    if _ROOT.name in {"site-packages", "dist-packages"}:
        return dict(base)
    others = [path for path in base.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = dict.fromkeys([str(_ROOT), *others])
    return {**base, "PYTHONPATH": os.pathsep.join(paths)}
