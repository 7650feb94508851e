"""A whole model's file and slices cut directly from it, to compare slices made of parts with."""

from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from p2pinfer.core.errors import BadModelFile
from p2pinfer.core.ids import ModelId
from p2pinfer.engine.gguf.model_header import ModelInfo, model_info
from p2pinfer.engine.gguf.reader import GgufHeader, read_header
from p2pinfer.engine.gguf.slice_plan import SlicePlan
from p2pinfer.engine.gguf.slicing import (
    extents,
    plan_first_end,
    plan_last_end,
    plan_stage,
    write_slice,
)


@dataclass(frozen=True)
class Model:
    """A whole model's file, read and checked, whose slices are kept in ``cache``."""

    path: Path
    id: ModelId
    """BLAKE3 of the file."""
    info: ModelInfo
    header: GgufHeader
    cache: Path

    def stage(self, first: int, end: int) -> Path:
        """Return the slice of layers ``first`` up to but not including ``end``; raises as plan."""
        plan = plan_stage(self.header, first, end)
        return self._written(f"stage-{first}-{end}.gguf", plan)

    def ends(self, keep: int) -> tuple[Path, Path]:
        """Return the first and the last end, ``keep`` layers each; raises as plan."""
        return (
            self._written(f"first-{keep}.gguf", plan_first_end(self.header, keep)),
            self._written(f"last-{keep}.gguf", plan_last_end(self.header, keep)),
        )

    def _written(self, name: str, plan: SlicePlan) -> Path:
        path = self.cache / self.id / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_slice(plan, extents(self.header, self.path), path)
        return path


def open_model(path: Path, cache: Path) -> Model:
    """Read and check a GGUF file.

    Raises:
        BadModelFile: it cannot be read, is no GGUF, or makes no sense.
    """
    try:
        header = read_header(path)
        digest = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadModelFile(f"cannot read {path}: {reason}; name a GGUF file") from error
    return Model(path, ModelId(digest), model_info(header), header, cache)
