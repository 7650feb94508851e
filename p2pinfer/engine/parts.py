"""Cut a model into parts, each a small GGUF, and put slices together from those that are held.

    metadata    all of the model's metadata but the tokenizer's, and the tensors every layer uses
    tokenizer   all of the metadata, in its file's order; no tensors
    embedding   the token embedding, which is the head too where the model has no other
    layer.N     the tensors of a layer, under their names in the whole model
    output      the output norm, and the head where there is one

The parts follow from the model alone, not from its file's name, place or time. Which tensors there
are, and in which order, stands in the manifest, so that a slice is planned without the parts that
it does not need, and has the very bytes of one that is cut from the whole file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from p2pinfer.core.errors import BadModelFile, UserError
from p2pinfer.core.ids import ModelId, PartHash
from p2pinfer.core.manifest import (
    ARCHITECTURE_CHARS_MAX,
    CHUNK_BYTES,
    EMBEDDING,
    LICENSE_CHARS_MAX,
    METADATA,
    NAME_CHARS_MAX,
    OUTPUT,
    TOKENIZER,
    Manifest,
    Part,
    TensorRow,
    layer_part,
    part_names,
)
from p2pinfer.engine import models
from p2pinfer.engine.architectures import ROPE_TENSORS
from p2pinfer.engine.ggml_types import GGML_TYPES
from p2pinfer.engine.gguf import GgufHeader, alignment_bytes, padded, parse_header, read_header
from p2pinfer.engine.gguf_values import Metadata
from p2pinfer.engine.gguf_writer import Extent, NewTensor, encode_header, gguf_blocks
from p2pinfer.engine.models import ModelInfo, model_info, split_layer
from p2pinfer.engine.slices import slice_path
from p2pinfer.engine.slicing import (
    SlicePlan,
    plan_first_end,
    plan_last_end,
    plan_stage,
    write_slice,
)
from p2pinfer.engine.store import Store, WrongChunk

_KEYS_OF_EVERY_PART = ("general.architecture", "general.quantization_version")
"""What the GGUF specification wants in every file; no more, so that models can share parts."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many bytes of it are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class PartFile:
    """A part as it is to be written."""

    metadata: Metadata
    tensors: Sequence[NewTensor]

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in chunks; raises BadModelFile if the model's file became shorter."""
        pending = bytearray()
        for block in gguf_blocks(self.metadata, self.tensors):
            pending += block
            while len(pending) >= CHUNK_BYTES:
                yield bytes(pending[:CHUNK_BYTES])
                del pending[:CHUNK_BYTES]
        if pending:
            yield bytes(pending)


def add_model(store: Store, path: Path, on_progress: Progress) -> Manifest:
    """Cut a GGUF file and keep its parts; what is there already is not written again.

    The file is read twice, a chunk at a time: once for the manifest, once for the parts.

    Raises:
        BadModelFile: it cannot be read, is no GGUF, or makes no sense.
        UnsupportedModel: it is not proven to split exactly.
        UserError: the parts do not fit.
    """
    try:
        header = read_header(path)
        files = part_files(header, path)
        manifest = describe(header, files, on_progress)
        store.check_room(manifest.parts)
        store.add_manifest(manifest.encode(), manifest.id)
        done = 0
        for part in manifest.parts:
            on_progress("storing", done, manifest.size)
            _keep(store, part, files[part.name])
            done += part.size
        on_progress("storing", done, manifest.size)
    except WrongChunk as error:
        raise UserError(f"{path} changed while it was being read; add it again") from error
    except OSError as error:
        raise BadModelFile(f"cannot read {path}: {error.strerror}") from error
    return manifest


def _keep(store: Store, part: Part, file: PartFile) -> None:
    if store.held(part):
        return
    held = store.chunks_held(part)
    if len(held) < len(part.chunks):
        for index, data in enumerate(file.chunks()):
            if index not in held:
                store.write_chunk(part, index, data)
    store.finish(part)


def part_files(header: GgufHeader, path: Path) -> dict[str, PartFile]:
    """Plan every part of a model's file, by its name.

    Raises:
        BadModelFile: the header makes no sense.
        UnsupportedModel: the model is not proven to split exactly.
    """
    _check(header)
    tensors: dict[str, list[NewTensor]] = {}
    for tensor in header.tensors.values():
        source = Extent(path, tensor.offset, tensor.nbytes)
        new = NewTensor(tensor.name, tensor.shape, tensor.type, source)
        tensors.setdefault(part_of(tensor.name), []).append(new)
    every = {key: header.metadata[key] for key in _KEYS_OF_EVERY_PART if key in header.metadata}
    metadata: dict[str, Metadata] = {
        METADATA: {k: v for k, v in header.metadata.items() if not k.startswith("tokenizer.")},
        TOKENIZER: header.metadata,
    }
    return {
        name: PartFile(metadata.get(name, every), tensors.get(name, []))
        for name in part_names(model_info(header).layers)
    }


def part_of(tensor: str) -> str:
    """Return the name of the part that holds a tensor of a model that can be split."""
    place = split_layer(tensor)
    if place is not None:
        return layer_part(place[0])
    if tensor in ROPE_TENSORS:
        return METADATA
    return EMBEDDING if tensor == models.EMBEDDING else OUTPUT


def describe(header: GgufHeader, files: Mapping[str, PartFile], on_progress: Progress) -> Manifest:
    """Hash every part, and return the manifest; raises as ``PartFile.chunks``, and OSError."""
    total = sum(tensor.nbytes for tensor in header.tensors.values())
    parts = []
    done = 0
    for name, file in files.items():
        on_progress("hashing", done, total)
        whole = blake3()
        chunks = []
        for chunk in file.chunks():
            whole.update(chunk)
            chunks.append(blake3(chunk).digest())
        size = (len(chunks) - 1) * CHUNK_BYTES + len(chunk)
        parts.append(Part(name, PartHash(whole.hexdigest()), size, tuple(chunks)))
        done += sum(tensor.nbytes for tensor in file.tensors)
    on_progress("hashing", done, total)
    return _manifest(header, tuple(parts))


def _manifest(header: GgufHeader, parts: tuple[Part, ...]) -> Manifest:
    """Say what a model is, in the manifest's words."""
    info = model_info(header)
    return Manifest(
        # Not info.name, which falls back to the name that the file happens to have.
        name=_line(header.string("general.name"), NAME_CHARS_MAX) or info.architecture,
        license=_line(info.license, LICENSE_CHARS_MAX),
        architecture=info.architecture[:ARCHITECTURE_CHARS_MAX],
        layers=info.layers,
        width=info.width,
        vocabulary=info.vocabulary_tokens,
        context=info.context_tokens,
        tensors=tuple(TensorRow(t.name, t.type.number, t.shape) for t in header.tensors.values()),
        parts=parts,
    )


def _line(text: str | None, most: int) -> str | None:
    """Make a printable line of what a file says; None if nothing is left."""
    line = "".join(c if c.isprintable() else " " for c in text or "")
    return line.strip()[:most] or None


@dataclass(frozen=True)
class PartsModel:
    """A model of which some parts are held; the same face as ``slices.Model``.

    Its slices are kept in ``cache``; each needs the parts that the manifest names for it, and no
    other.
    """

    store: Store
    manifest: Manifest
    info: ModelInfo
    """Without a chat template as long as the tokenizer is not held."""
    cache: Path

    @property
    def id(self) -> ModelId:
        """The manifest's hash."""
        return self.manifest.id

    def stage(self, first: int, end: int) -> Path:
        """Return the slice of layers ``first`` up to but not including ``end``.

        Raises:
            MissingChunk: a part that it needs is not here.
            DamagedPart: one was, and is no longer what it was; it must be fetched again.
            BadModelFile: the parts are not what the manifest says.
            UserError: the model has no such layers, or the slice cannot be written.
        """
        header = whole_header(self.store, self.manifest, METADATA)
        return self._written(f"stage-{first}-{end}.gguf", plan_stage(header, first, end))

    def ends(self, keep: int) -> tuple[Path, Path]:
        """Return the first and the last end, ``keep`` layers each; raises as ``stage``."""
        header = whole_header(self.store, self.manifest, TOKENIZER)
        return (
            self._written(f"first-{keep}.gguf", plan_first_end(header, keep)),
            self._written(f"last-{keep}.gguf", plan_last_end(header, keep)),
        )

    def _written(self, name: str, plan: SlicePlan) -> Path:
        path = slice_path(self.cache, self.id, name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_slice(plan, self._sources(plan), path)
        return path

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
                headers[name] = read_header(self.store.path(part))
            found = headers[name].tensors.get(tensor.source)
            if found is None or (found.shape, found.type) != (tensor.shape, tensor.type):
                raise BadModelFile(
                    f"{self.manifest.name}'s {name} lacks the {tensor.source!r} of its manifest"
                )
            path = self.store.path(part)
            sources[tensor.source] = Extent(path, found.offset, found.nbytes)
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
    return PartsModel(store, manifest, info, cache)


def whole_header(store: Store, manifest: Manifest, name: str) -> GgufHeader:
    """Return the whole model's header, with the metadata of the metadata or the tokenizer part.

    Raises as ``open_parts``.
    """
    part = manifest.part(name)
    store.verify(part)
    return join_header(manifest, read_header(store.path(part)).metadata)


def join_header(manifest: Manifest, metadata: Metadata) -> GgufHeader:
    """Make a header of a part's metadata and the manifest's tensors, and judge it as any file's.

    Raises:
        BadModelFile: it makes no sense, or is not what the manifest says.
        UnsupportedModel: the model is not proven to split exactly.
    """
    tensors = [_tensor(manifest, row) for row in manifest.tensors]
    encoded = encode_header(metadata, tensors)
    alignment = alignment_bytes(metadata, manifest.name)
    file_bytes = len(encoded) + sum(padded(tensor.nbytes, alignment) for tensor in tensors)
    header = parse_header(encoded, file_bytes, manifest.name)
    _check(header)
    if _manifest(header, manifest.parts) != manifest:
        raise BadModelFile(f"{manifest.name} is damaged: its metadata contradicts its manifest")
    return header


def _check(header: GgufHeader) -> None:
    """Check that a header is of a whole model that can be split; raises as the plans."""
    plan_first_end(header, 1)
    plan_last_end(header, 1)


def _tensor(manifest: Manifest, row: TensorRow) -> NewTensor:
    ggml_type = GGML_TYPES.get(row.type)
    if ggml_type is None:
        raise BadModelFile(f"{manifest.name}: {row.name!r} has the unknown type {row.type}")
    tensor = NewTensor(row.name, row.shape, ggml_type, None)
    if tensor.nbytes > manifest.size:  # the sums that follow are then bounded
        raise BadModelFile(f"{manifest.name}: {row.name!r} is larger than the whole model")
    return tensor
