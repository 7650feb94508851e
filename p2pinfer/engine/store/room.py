"""Whether something more fits: into the store's quota, and onto its disk."""

import shutil
from collections.abc import Callable
from pathlib import Path

from p2pinfer.core.errors import UserError
from p2pinfer.engine.store.disk import nearest_folder, size_text
from p2pinfer.engine.store.slice_files import Slices


class StoreRoom:
    """The quota and the disk; slices that nothing runs make room where it is short."""

    def __init__(
        self, quota_bytes: int | None, slices: Slices | None, used: Callable[[], int]
    ) -> None:
        self._quota_bytes, self._slices, self._used = quota_bytes, slices, used

    def check_quota(self, more_bytes: int) -> None:
        """Raise UserError if so much more exceeds the quota."""
        if self._quota_bytes is None or more_bytes == 0:
            return
        used = self._used()
        if self._slices and used + more_bytes > self._quota_bytes:
            used -= self._slices.make_room(used + more_bytes - self._quota_bytes)
        if used + more_bytes > self._quota_bytes:
            raise UserError(
                f"{size_text(more_bytes)} more would exceed the store's quota of"
                f" {size_text(self._quota_bytes)}, of which {size_text(used)} are used: raise"
                " --quota, or remove a model (p2pinfer model rm ID)"
            )

    def check(self, root: Path, new_bytes: int, disk_bytes: int, slice_bytes: int) -> None:
        """Raise UserError if a store has no room for parts and slices; raises OSError.

        Args:
            root: the store's directory.
            new_bytes: parts of which nothing is there yet.
            disk_bytes: what parts will take that they do not take yet.
            slice_bytes: what will be cut from them.
        """
        self.check_quota(new_bytes + slice_bytes)
        cache = self._slices.root if self._slices else root
        is_same = nearest_folder(cache).stat().st_dev == nearest_folder(root).stat().st_dev
        self._check_disk(root, disk_bytes + (slice_bytes if is_same else 0))
        self._check_disk(cache, slice_bytes)

    def _check_disk(self, folder: Path, more_bytes: int) -> None:
        free = shutil.disk_usage(nearest_folder(folder)).free
        if self._slices and more_bytes > free:
            free += self._slices.make_room(more_bytes - free)
        if more_bytes > free:
            raise UserError(
                f"{size_text(more_bytes)} are needed in {folder} and {size_text(free)} are free:"
                " make room, or set P2PINFER_HOME to a directory on a larger disk"
            )
