"""Where p2pinfer keeps its files: platform directories, or ``P2PINFER_HOME`` for all of them."""

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from p2pinfer.core.errors import UserError


def data_dir() -> Path:
    """Return the directory for keys and everything else that must not be lost."""
    return _place("data", platformdirs.user_data_path)


def cache_dir() -> Path:
    """Return the directory for slices and probes, all of which can be made again."""
    return _place("cache", platformdirs.user_cache_path)


def state_dir() -> Path:
    """Return the directory for chat history and standings."""
    return _place("state", platformdirs.user_state_path)


def run_dir() -> Path:
    """Return the directory for sockets of running processes, which only its owner may enter."""
    path = state_dir() / "run"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _place(name: str, default: Callable[[str], Path]) -> Path:
    home = os.environ.get("P2PINFER_HOME")
    path = Path(home).expanduser() / name if home else default("p2pinfer")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot keep anything in {path} ({error.strerror}): set P2PINFER_HOME to a directory"
            " that you may write to"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {path}: set P2PINFER_HOME to a directory of your own")
    return path
