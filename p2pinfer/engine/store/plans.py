"""The storage plans of models, kept beside their manifests by the models' ids."""

import threading
from pathlib import Path

from p2pinfer.core.ids import ModelId, PartHash
from p2pinfer.core.manifest import Manifest
from p2pinfer.core.stripes import BadPlan, StoragePlan, parse_plan

PLANS_MAX = 4
"""Kept in memory, with up to 30,000 parts each: a peer keeps a few models."""


class Plans:
    """Files named by models' ids, each with a storage plan's bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._recent: dict[ModelId, tuple[int, StoragePlan]] = {}
        """By the time of the file."""
        self._reading = threading.Lock()

    def of(self, manifest: Manifest) -> StoragePlan | None:
        """Return a model's plan if it is here; raises OSError."""
        path = self.folder / manifest.id
        with self._reading:
            try:
                written_ns = path.stat().st_mtime_ns
                known_ns, found = self._recent.pop(manifest.id, (0, None))
                if found is None or known_ns != written_ns:
                    found = parse_plan(path.read_bytes(), manifest)
            except FileNotFoundError:
                return None
            except BadPlan:  # damaged on disk, or of another release; it can be had again
                path.unlink(missing_ok=True)
                return None
            self._recent[manifest.id] = written_ns, found
            while len(self._recent) > PLANS_MAX:
                del self._recent[next(iter(self._recent))]
        return found

    def keep(self, plan: StoragePlan) -> None:
        """Write a plan in place of the last one; raises OSError. The caller holds the lock."""
        temporary = self.folder / ".new"
        temporary.write_bytes(plan.encode())
        temporary.replace(self.folder / plan.model)

    def forget(self, model: ModelId) -> None:
        """Remove a model's plan."""
        (self.folder / model).unlink(missing_ok=True)

    def parts(self, manifest: Manifest) -> set[PartHash]:
        """Return the names of a model's parity parts."""
        found = self.of(manifest)
        return {part.hash for part in found.parts} if found else set()
