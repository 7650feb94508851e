"""Cut a model into parts, each a small GGUF.

    metadata    all of the model's metadata but the tokenizer's, and the tensors every layer uses
    tokenizer   all of the metadata, in its file's order; no tensors
    embedding   the token embedding, which is the head too where the model has no other
    layer.N     the tensors of a layer, under their names in the whole model; blocks behind the last
                layer, which draft tokens, have no part, since nobody runs them
    output      the output norm, and the head where there is one

The parts depend only on the model, not on its file's name, place or time. The tensors and their
order are in the manifest; ``assemble`` puts slices together from parts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from p2pinfer.core.errors import BadModelFile, UserError
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
from p2pinfer.core.text import printable
from p2pinfer.engine.gguf import model_header
from p2pinfer.engine.gguf.architectures import ROPE_TENSORS
from p2pinfer.engine.gguf.model_header import model_info, split_layer
from p2pinfer.engine.gguf.reader import GgufHeader, read_header
from p2pinfer.engine.gguf.slicing import plan_first_end, plan_last_end
from p2pinfer.engine.gguf.values import Metadata
from p2pinfer.engine.gguf.writer import Extent, NewTensor, gguf_blocks
from p2pinfer.engine.store.store import Store, WrongChunk

_KEYS_OF_EVERY_PART = ("general.architecture", "general.quantization_version")
"""What the GGUF specification requires in every file; no more, so that models can share parts."""

Progress = Callable[[str, int, int], None]
"""Gets the current activity, how many bytes of it are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class PartFile:
    """A part to be written."""

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
    """Cut a GGUF file and keep its parts; those already in the store are not written again.

    The file is read twice, a chunk at a time: once for the manifest, once for the parts.

    Raises:
        BadModelFile: it cannot be read, is not a GGUF, or makes no sense.
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
        raise BadModelFile(f"cannot read {path}: {error.strerror}; name a GGUF file") from error
    return manifest


def _keep(store: Store, part: Part, file: PartFile) -> None:
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
    check_whole(header)
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
    return EMBEDDING if tensor == model_header.EMBEDDING else OUTPUT


def describe(header: GgufHeader, files: Mapping[str, PartFile], on_progress: Progress) -> Manifest:
    """Hash every part, and return the manifest; raises as ``PartFile.chunks``, and OSError."""
    total = sum(tensor.nbytes for file in files.values() for tensor in file.tensors)
    parts = []
    done = 0
    for name, file in files.items():
        on_progress("hashing", done, total)
        size, chunks = 0, []
        for chunk in file.chunks():
            size += len(chunk)
            chunks.append(blake3(chunk).digest())
        parts.append(Part(name, size, tuple(chunks)))
        done += sum(tensor.nbytes for tensor in file.tensors)
    on_progress("hashing", done, total)
    return manifest_of(header, tuple(parts))


def manifest_of(header: GgufHeader, parts: tuple[Part, ...]) -> Manifest:
    """Describe a model as a manifest."""
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
    """Return a file's text as a printable line; None if nothing is left."""
    return printable(text or "").strip()[:most] or None


def check_whole(header: GgufHeader) -> None:
    """Check that a header is of a whole model that can be split; raises as the plans do."""
    plan_first_end(header, 1)
    plan_last_end(header, 1)
