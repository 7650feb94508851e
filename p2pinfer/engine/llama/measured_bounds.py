"""The bounds of a model that were measured here: see ``calibration``."""

import json
import os
from pathlib import Path
from typing import Any

from p2pinfer.core.bounds import DEFAULT_BOUNDS, Bounds
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.engine.store.store import Store


def keep_bounds(store: Store, model: ModelId, report: dict[str, Any]) -> None:
    """Store a calibration's report.

    Raises:
        UserError: it cannot be written.
    """
    path = _path(store, model)
    new = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        new.write_text(json.dumps(report, indent=1))
        new.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; make room on the disk") from error


def bounds_of(store: Store, model: ModelId) -> Bounds:
    """Return a model's bounds if they were measured here, otherwise the default ones."""
    try:
        found = json.loads(_path(store, model).read_bytes())["bounds"]
        return Bounds(float(found["median"]), float(found["row"]))
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_BOUNDS


def _path(store: Store, model: ModelId) -> Path:
    return store.root / "bounds" / model
