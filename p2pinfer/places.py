"""Where p2pinfer keeps things: platform directories, or all of it under ``P2PINFER_HOME``."""

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs


def data_dir() -> Path:
    """Keys and whatever else must not be lost."""
    return _place("data", platformdirs.user_data_path)


def cache_dir() -> Path:
    """Slices and probes: all of it can be made again."""
    return _place("cache", platformdirs.user_cache_path)


def state_dir() -> Path:
    """Chat history and logs."""
    return _place("state", platformdirs.user_state_path)


def _place(name: str, default: Callable[[str], Path]) -> Path:
    home = os.environ.get("P2PINFER_HOME")
    path = Path(home).expanduser() / name if home else default("p2pinfer")
    path.mkdir(parents=True, exist_ok=True)
    return path
