"""Put slices together from the parts that are held.

A slice is planned from the manifest and the metadata part (the ends from the tokenizer part, which
has all of the metadata), without the parts that it does not need. It has the very bytes of one
that is cut from the whole file.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from p2pinfer.core.errors import BadModelFile
from p2pinfer.core.ids import ModelId
from p2pinfer.core.manifest import (
    EMBEDDING,
    METADATA,
    OUTPUT,
    TOKENIZER,
    Manifest,
    Part,
    TensorRow,
    adapter_part,
)
from p2pinfer.core.model_names import readable_name
from p2pinfer.engine.gguf.adapters import adapter_path
from p2pinfer.engine.gguf.ggml_types import GGML_TYPES
from p2pinfer.engine.gguf.model_header import ModelInfo, model_info
from p2pinfer.engine.gguf.reader import GgufHeader, alignment_bytes, padded, parse_header
from p2pinfer.engine.gguf.sampling_advice import Advice, advice_of
from p2pinfer.engine.gguf.slice_plan import SlicePlan
from p2pinfer.engine.gguf.slicing import plan_first_end, plan_last_end, plan_stage, write_slice
from p2pinfer.engine.gguf.values import Metadata
from p2pinfer.engine.gguf.writer import Extent, NewTensor, encode_header
from p2pinfer.engine.store.slice_adapters import part_header, write_slice_adapter
from p2pinfer.engine.store.slice_files import Slices
from p2pinfer.engine.store.split import check_whole, manifest_of, part_of
from p2pinfer.engine.store.store import Store

SPARE_SLICES_MAX = 3
"""Unused slices that are kept all the same: audits run the same few now and then."""


_OF_EMBEDDING, _OF_HEAD = adapter_part(EMBEDDING), adapter_part(OUTPUT)


class _Cut(NamedTuple):
    """Which slice of a model."""

    kind: str
    """How the names of slices like it begin."""
    name: str
    first: int
    """Its first layer."""
    parts: tuple[str, ...]
    """Some of these are in its adapter."""


@dataclass(frozen=True)
class PartsModel:
    """A model of which some parts are held.

    Its slices are kept in ``cache``; each needs the parts that the manifest names for it, and no
    other. With an adapter they are the base's slices under names of their own, each with its part
    of the adapter beside it.
    """

    store: Store
    manifest: Manifest
    info: ModelInfo
    """Without a chat template as long as the tokenizer is not held."""
    header: GgufHeader
    """The whole model's; without a chat template under the same condition."""
    cache: Path

    @property
    def id(self) -> ModelId:
        """The manifest's hash."""
        return self.manifest.id

    @property
    def advice(self) -> Advice:
        """How it wants to be sampled."""
        return advice_of((self.manifest.base or self.manifest).id, self.header)

    def stage(self, first: int, end: int, spare: int = SPARE_SLICES_MAX) -> Path:
        """Return the slice of layers ``first`` up to but not including ``end``.

        Where it has to be cut, unused ones are removed, all but ``spare``.

        Raises:
            MissingChunk: a part that it needs is not here.
            DamagedPart: one was, and is no longer what it was; it must be fetched again.
            BadModelFile: the parts are not what the manifest says.
            UserError: the model has no such layers, or the slice cannot be written.
        """
        cut = _Cut("stage-", f"{first}-{end}", first, self.manifest.needed(first, end))
        return self._written(cut, plan_stage(self.header, first, end), spare)

    def drop_unused_stages(self) -> None:
        """Remove the slices of layers that are no longer used."""
        Slices(self.cache).drop_unused(self.id, "stage-")
        if base := self._base():
            base.drop_unused_stages()

    def stage_path(self, first: int, end: int) -> Path:
        """Return where that slice is, or will be."""
        return self._path(f"stage-{first}-{end}.gguf")

    def end_paths(self, keep: int, last: int | None = None) -> tuple[Path, Path]:
        """Return where the slices of both ends are, or will be; layers as for ``ends``."""
        behind = keep if last is None else last
        return self._path(f"first-{keep}.gguf"), self._path(f"last-{behind}.gguf")

    def ends(self, keep: int, last: int | None = None) -> tuple[Path, Path]:
        """Return both ends, ``keep`` layers each or ``last`` in the second; raises as ``stage``."""
        return self._ends(keep, keep if last is None else last)

    def halves(self) -> tuple[Path, Path]:
        """Return ends that leave no layer between them; raises as ``stage``."""
        return self.meeting_ends(self.info.layers - max(1, self.info.layers // 2))

    def meeting_ends(self, last: int) -> tuple[Path, Path]:
        """Return ends that leave no layer between them, ``last`` layers in the second one."""
        return self._ends(self.info.layers - last, last)

    def _ends(self, first: int, last: int) -> tuple[Path, Path]:
        header = whole_header(self.store, self.manifest, TOKENIZER)
        layers, held = self.manifest.layers, self.manifest.needed
        before = _Cut("first-", str(first), 0, (_OF_EMBEDDING, *held(0, first)))
        behind = _Cut("last-", str(last), layers - last, (*held(layers - last, layers), _OF_HEAD))
        one, other = (
            bool({_OF_EMBEDDING, _OF_HEAD} & self._adapted(cut).keys()) for cut in (before, behind)
        )
        first_plan = plan_first_end(header, first, two_matrices=one)
        last_plan = plan_last_end(header, last, two_matrices=other)
        return (
            self._written(before, first_plan, is_shared=not one),
            self._written(behind, last_plan, is_shared=not other),
        )

    def _adapted(self, cut: "_Cut") -> dict[str, Part]:
        """Return the parts of a slice's adapter by their names."""
        return {part.name: part for part in self.manifest.adapter if part.name in cut.parts}

    def _path(self, name: str) -> Path:
        return Slices(self.cache).path(self.id, name)

    def _base(self) -> "PartsModel | None":
        """Return the model under an adapter, whose slices are this one's too."""
        base = self.manifest.base
        return replace(self, manifest=base, info=model_info(self.header)) if base else None

    def _written(
        self, cut: "_Cut", plan: SlicePlan, spare: int = 0, *, is_shared: bool = True
    ) -> Path:
        """Return a slice with its adapter beside it; ``is_shared``: it is the base's slice."""
        path, slices = self._path(f"{cut.kind}{cut.name}.gguf"), Slices(self.cache)
        adapter = self._adapted(cut).values()
        is_ready = adapter_path(path).exists() or not adapter
        if not (slices.note_wanted(path) and is_ready):
            slices.drop_unused(self.id, cut.kind, spare)
            if adapter:  # first: nobody runs the slice without it
                architecture, beside = self.info.architecture, adapter_path(path)
                write_slice_adapter(self.store, adapter, architecture, cut.first, beside)
            base = self._base() if is_shared else None
            if not (base and slices.link(base._written(cut, plan, spare), path)):
                self._write(plan, path)
        return path

    def _write(self, plan: SlicePlan, path: Path) -> None:
        tensors = [NewTensor(each.name, each.shape, each.type, None) for each in plan.tensors]
        self.store.check_room_for_slice(sum(tensor.nbytes for tensor in tensors))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_slice(plan, self._sources(plan), path)

    def _sources(self, plan: SlicePlan) -> dict[str, Extent]:
        """Find the plan's tensors in the parts, which are hashed once more before they are read."""
        sources: dict[str, Extent] = {}
        headers: dict[str, GgufHeader] = {}
        for tensor in plan.tensors:
            if tensor.source is None:
                continue
            name = part_of(tensor.source)
            part = self.manifest.part(name)
            if name not in headers:
                self.store.verify(part)
                headers[name] = part_header(self.store, part)
            found = headers[name].tensors.get(tensor.source)
            if found is None or (found.shape, found.type) != (tensor.shape, tensor.type):
                raise BadModelFile(
                    f"{self.manifest.name}'s {name} lacks the {tensor.source!r} of its manifest"
                )
            extent = self.store.pieces(part).locate(found.offset, found.nbytes)
            if extent is None:
                raise BadModelFile(
                    f"{self.manifest.name}'s {tensor.source!r} does not lie where it was"
                )
            sources[tensor.source] = extent
        return sources


def open_parts(store: Store, manifest: Manifest, cache: Path) -> PartsModel:
    """Read and check what the metadata part says, and the tokenizer's if that is held.

    Raises:
        MissingChunk, DamagedPart: the metadata part is not here, or no longer.
        BadModelFile: it makes no sense, or is not what the manifest says.
        UnsupportedModel: the model is not proven to split exactly.
    """
    name = TOKENIZER if store.held(manifest.part(TOKENIZER)) else METADATA
    header = whole_header(store, manifest, name)
    info = model_info(header)
    if manifest.base:
        info = replace(info, name=readable_name(manifest.name), license=manifest.license)
    return PartsModel(store, manifest, info, header, cache)


def whole_header(store: Store, manifest: Manifest, name: str) -> GgufHeader:
    """Return the whole model's header, with the metadata of the metadata or the tokenizer part.

    Raises as ``open_parts``.
    """
    part = manifest.part(name)
    store.verify(part)
    return join_header(manifest, part_header(store, part).metadata)


def join_header(manifest: Manifest, metadata: Metadata) -> GgufHeader:
    """Make a header of a part's metadata and the manifest's tensors, and judge it as any file's.

    Raises:
        BadModelFile: it makes no sense, or is not what the manifest says.
        UnsupportedModel: the model is not proven to split exactly.
    """
    manifest = manifest.base or manifest
    tensors = [_tensor(manifest, row) for row in manifest.tensors]
    encoded = encode_header(metadata, tensors)
    alignment = alignment_bytes(metadata, manifest.name)
    file_bytes = len(encoded) + sum(padded(tensor.nbytes, alignment) for tensor in tensors)
    header = parse_header(encoded, file_bytes, manifest.name)
    check_whole(header)
    if manifest_of(header, manifest.parts) != manifest:
        raise BadModelFile(f"{manifest.name} is damaged: its metadata contradicts its manifest")
    return header


def _tensor(manifest: Manifest, row: TensorRow) -> NewTensor:
    ggml_type = GGML_TYPES.get(row.type)
    if ggml_type is None:
        raise BadModelFile(f"{manifest.name}: {row.name!r} has the unknown type {row.type}")
    tensor = NewTensor(row.name, row.shape, ggml_type, None)
    if tensor.nbytes > manifest.size:  # the sums that follow are then bounded
        raise BadModelFile(f"{manifest.name}: {row.name!r} is larger than the whole model")
    return tensor
