"""A model's manifest: its parts, each named by its hash, and a description of the whole.

The BLAKE3 hash of a manifest's bytes is the model's id, and the only root of trust: bytes that do
not hash to the id that a person named are never parsed, and every byte of a part is checked against
a hash in here. The bytes are canonical: one msgpack array with exactly one encoding, so that the
same file gives the same id on every machine.

    [FORMAT, name, license or nil, architecture, layers, width, vocabulary, context,
     [[tensor name, ggml type, [sizes…]]…]          every tensor of the model, in its file's order
     [[bytes, chunk hashes joined]…]]               the parts, in the order of ``part_names``

A part is named by the root of a tree of two levels: the hash over its size and its chunks' hashes.
So once every chunk is checked, the part is checked and need not be read a second time; and no
manifest can give other chunks to a part that another model shares.

Above 120 GiB the chunks' hashes no longer fit into one message. The manifest, whose first value is
then ``LONG_FORMAT``, gives each part's hash in their place, and a peer that needs a part fetches
its list of hashes first. A model that fits has no such manifest, or it would have two ids.

A model with an adapter is a child of another model, and has all of that one's parts:

    [CHILD_FORMAT, name, license or nil, the base's manifest,
     [[part name, bytes, chunk hashes joined]…]]    the adapter's parts, in the order of
                                                    ``adapter_part_names``
"""

from collections.abc import Callable
from typing import Any

import msgpack
from attrs import evolve, field, frozen
from blake3 import blake3

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId, PartHash

FORMAT = "p2pinfer model 2"
LONG_FORMAT = "p2pinfer model 3"
"""Of models too large for ``FORMAT``: parts are named, and their chunks listed elsewhere."""
CHILD_FORMAT = "p2pinfer child 1"
"""Of models with an adapter."""

CHUNK_BYTES = 1 << 20
"""Fetched and checked at once: large enough that the cost of a request is small beside it."""

HASH_BYTES = 32
SIZE_BYTES = 8
PART_CONTEXT = "p2pinfer 2 a part's size and the hashes of its chunks"
"""Sets a part's hash apart from that of a file with the same bytes."""

MANIFEST_BYTES_MAX = 4 << 20
"""At 32 bytes a chunk, the weights of a model of 120 GiB; fits into one message."""
LISTED_BYTES_MAX = MANIFEST_BYTES_MAX
"""A manifest that would be longer leaves its parts' chunks to lists of their own."""
PART_BYTES_MAX = 1 << 36
LIST_BYTES_MAX = PART_BYTES_MAX // CHUNK_BYTES * HASH_BYTES
"""The hashes of the longest part's chunks."""
LAYERS_MAX = 512  # LLAMA_MAX_LAYERS
NAME_CHARS_MAX = 128
LICENSE_CHARS_MAX = 128
ARCHITECTURE_CHARS_MAX = 64
WIDTH_MAX = 65_536
VOCABULARY_TOKENS_MAX = 1 << 20
CONTEXT_TOKENS_MAX = 1 << 25
TENSORS_MAX = 16_384
TENSOR_NAME_CHARS_MAX = 63
TENSOR_TYPE_MAX = 255
TENSOR_DIMENSIONS_MAX = 4
TENSOR_SIZE_MAX = 1 << 40

METADATA, TOKENIZER, EMBEDDING, OUTPUT = "metadata", "tokenizer", "embedding", "output"


class BadManifest(UserError):
    """The bytes are not a manifest, or not the one that was named."""


class WrongManifest(BadManifest):
    """The bytes do not hash to the model's id: their sender is to blame, not the model."""


class WrongList(BadManifest):
    """The hashes are not those of a part's chunks: their sender is to blame, not the model."""


def layer_part(layer: int) -> str:
    """Return the name of a layer's part."""
    return f"layer.{layer}"


def part_names(layers: int) -> list[str]:
    """Return the names of all parts of a model, in the manifest's order."""
    return [METADATA, TOKENIZER, EMBEDDING, *map(layer_part, range(layers)), OUTPUT]


def adapter_part(part: str) -> str:
    """Return the name of the adapter's part that goes with a part of the base."""
    return f"adapter.{part}"


def adapter_part_names(layers: int) -> list[str]:
    """Return the names that an adapter's parts can have, in the manifest's order."""
    return [adapter_part(name) for name in part_names(layers) if name not in (METADATA, TOKENIZER)]


def _whole(low: int, high: int) -> Callable[[object, Any, int], None]:
    def check(_: object, attribute: Any, value: int) -> None:
        if type(value) is not int or not low <= value <= high:
            raise BadManifest(f"the manifest's {attribute.name} is not from {low} to {high}")

    return check


def _text(most: int) -> Callable[[object, Any, str], None]:
    def check(_: object, attribute: Any, value: str) -> None:
        if type(value) is not str or not 1 <= len(value) <= most or not value.isprintable():
            raise BadManifest(f"the manifest's {attribute.name} is not a line of 1 to {most} chars")

    return check


def _license(_: object, attribute: Any, value: str | None) -> None:
    if value is not None:
        _text(LICENSE_CHARS_MAX)(_, attribute, value)


@frozen
class Part:
    """One small GGUF file: metadata, tokenizer, embedding, a layer, output, or of an adapter."""

    name: str
    size: int = field(validator=_whole(1, PART_BYTES_MAX))
    """Bytes."""
    chunks: tuple[bytes, ...] = field(eq=False, repr=lambda chunks: f"<{len(chunks)} hashes>")
    """BLAKE3 of every chunk of ``CHUNK_BYTES``; the last one may be shorter. Empty in a part of a
    manifest that does not list them."""
    hash: PartHash = field(default=PartHash(""))
    """Over ``size`` and ``chunks``: the part's name, the same in every model that has it."""

    def __attrs_post_init__(self) -> None:
        if not self.chunks and self.hash:
            return
        if len(self.chunks) != self.chunk_count:
            raise BadManifest(f"the manifest's {self.name} has {len(self.chunks)} chunks")
        tree = self.size.to_bytes(SIZE_BYTES, "big") + b"".join(self.chunks)
        digest = PartHash(blake3(tree, derive_key_context=PART_CONTEXT).hexdigest())
        if self.hash not in ("", digest):
            raise WrongList(f"these are not the hashes of {self.name} ({self.hash[:12]}…)")
        object.__setattr__(self, "hash", digest)

    @property
    def chunk_count(self) -> int:
        """How many chunks it has, listed or not."""
        return -(-self.size // CHUNK_BYTES)

    def listed(self, joined: bytes) -> "Part":
        """Return the same part with its chunks' hashes; raises WrongList if they are not its."""
        if len(joined) != self.chunk_count * HASH_BYTES:
            raise WrongList(f"{len(joined)} bytes are not the hashes of {self.name}")
        return Part(self.name, self.size, _hashes(joined), self.hash)

    def chunk_size(self, index: int) -> int:
        """Return the size in bytes of one of this part's chunks."""
        if not 0 <= index < self.chunk_count:
            raise IndexError(index)
        return min(CHUNK_BYTES, self.size - index * CHUNK_BYTES)


@frozen
class TensorRow:
    """A tensor's name, its ggml type number, and its sizes, fastest-varying first."""

    name: str = field(validator=_text(TENSOR_NAME_CHARS_MAX))
    type: int = field(validator=_whole(0, TENSOR_TYPE_MAX))
    shape: tuple[int, ...]

    def __attrs_post_init__(self) -> None:
        if not 1 <= len(self.shape) <= TENSOR_DIMENSIONS_MAX or any(
            type(size) is not int or not 1 <= size <= TENSOR_SIZE_MAX for size in self.shape
        ):
            raise BadManifest(f"the manifest's tensor {self.name!r} has no such shape")


@frozen
class Manifest:
    """What a model is, and the hashes of everything it is made of."""

    name: str = field(validator=_text(NAME_CHARS_MAX))
    license: str | None = field(validator=_license)
    architecture: str = field(validator=_text(ARCHITECTURE_CHARS_MAX))
    layers: int = field(validator=_whole(1, LAYERS_MAX))
    width: int = field(validator=_whole(1, WIDTH_MAX))
    """Numbers in one row of the residual stream."""
    vocabulary: int = field(validator=_whole(1, VOCABULARY_TOKENS_MAX))
    context: int = field(validator=_whole(1, CONTEXT_TOKENS_MAX))
    """Tokens."""
    tensors: tuple[TensorRow, ...] = field(repr=lambda rows: f"<{len(rows)} tensors>")
    """In the order of the model's original file, which slices keep."""
    parts: tuple[Part, ...]
    base: "Manifest | None" = None
    """The model that an adapter changes; its parts are the first of ``parts``."""
    id: ModelId = field(init=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if not 1 <= len(self.tensors) <= TENSORS_MAX:
            raise BadManifest(f"the manifest names {len(self.tensors)} tensors")
        self._check_parts()
        encoded = self.encode()
        if self.base and len(encoded) > MANIFEST_BYTES_MAX:
            raise BadManifest(f"{self.base.name} is too large for an adapter")
        assert len(encoded) <= MANIFEST_BYTES_MAX, len(encoded)  # its tensors and parts are counted
        object.__setattr__(self, "id", ModelId(blake3(encoded).hexdigest()))

    def _check_parts(self) -> None:
        names = [part.name for part in self.parts]
        if self.base:
            known = part_names(self.layers)
            chosen = set(names[len(known) :])
            known += [name for name in adapter_part_names(self.layers) if name in chosen]
            listed = all(part.chunks for part in self.adapter)
            if not chosen or names != known or not listed or self.base.base:
                raise BadManifest("the manifest's adapter has not the parts of one")
            return
        if names != part_names(self.layers):
            raise BadManifest(f"the manifest has {len(self.parts)} parts, {self.layers} layers")
        if not all(part.chunks for part in self.parts) and not self.is_long:
            raise BadManifest("the manifest lacks the hashes of its parts' chunks")

    @property
    def adapter(self) -> tuple[Part, ...]:
        """The parts that it has and its base has not."""
        return self.parts[len(self.base.parts) :] if self.base else ()

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)

    def part(self, name: str) -> Part:
        """Return the part of this name; raises KeyError."""
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(name)

    def needed(self, first: int, end: int) -> tuple[str, ...]:
        """Name the parts that a stage of layers ``first`` up to but not including ``end`` needs."""
        return self._with_adapter((METADATA, *map(layer_part, range(first, end))))

    def ends(self, keep: int, last: int | None = None) -> tuple[str, ...]:
        """Name the parts of both ends, ``keep`` layers each, or ``last`` in the second one."""
        behind = keep if last is None else last
        first, last_layers = range(keep), range(max(keep, self.layers - behind), self.layers)
        names = (METADATA, TOKENIZER, EMBEDDING, *map(layer_part, (*first, *last_layers)), OUTPUT)
        return self._with_adapter(names)

    def is_adapted(self, layer: int) -> bool:
        """Whether the adapter changes a layer."""
        return adapter_part(layer_part(layer)) in {part.name for part in self.adapter}

    def _with_adapter(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Add what the adapter has for some parts."""
        held = {part.name for part in self.adapter}
        return (*names, *(each for name in names if (each := adapter_part(name)) in held))

    def layer_size(self, layer: int) -> int:
        """Return the bytes of a layer, its adapter's included."""
        return sum(self.part(name).size for name in self.needed(layer, layer + 1)[1:])

    @property
    def is_long(self) -> bool:
        """Whether its parts' chunks do not fit into it, and are listed elsewhere."""
        packer = msgpack.Packer()
        listed = len(self._packed(FORMAT, [])) - 1 + len(packer.pack_array_header(len(self.parts)))
        for part in self.parts:
            joined = part.chunk_count * HASH_BYTES
            listed += len(packer.pack([part.size, b""])) + joined
            listed += (joined > 0xFF) + 2 * (joined > 0xFFFF)  # msgpack's longer byte strings
        return listed > LISTED_BYTES_MAX

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        if self.base:
            rows = [[part.name, part.size, b"".join(part.chunks)] for part in self.adapter]
            child = [CHILD_FORMAT, self.name, self.license, self.base.encode(), rows]
            packed: bytes = msgpack.packb(child)
            return packed
        if self.is_long:
            return self._packed(LONG_FORMAT, [[p.size, bytes.fromhex(p.hash)] for p in self.parts])
        return self._packed(FORMAT, [[part.size, b"".join(part.chunks)] for part in self.parts])

    def _packed(self, kind: str, parts: list[list[int | bytes]]) -> bytes:
        encoded: bytes = msgpack.packb(
            [
                kind,
                self.name,
                self.license,
                self.architecture,
                self.layers,
                self.width,
                self.vocabulary,
                self.context,
                [[row.name, row.type, row.shape] for row in self.tensors],
                parts,
            ]
        )
        return encoded


def child_of(
    base: Manifest, name: str, license_: str | None, adapter: tuple[Part, ...]
) -> Manifest:
    """Describe a model with an adapter; raises BadManifest."""
    return evolve(base, name=name, license=license_, parts=(*base.parts, *adapter), base=base)


def parse_manifest(data: bytes, model: ModelId | None = None) -> Manifest:
    """Return the manifest that the bytes hold; None accepts any model's.

    Raises:
        WrongManifest: they do not hash to ``model``; they were not parsed.
        BadManifest: they are not a manifest, or exceed one of its limits.
    """
    if len(data) > MANIFEST_BYTES_MAX:
        raise BadManifest(f"a manifest of {len(data):,} bytes is too long")
    if model is not None and blake3(data).hexdigest() != model:
        raise WrongManifest(f"the manifest does not hash to {model[:12]}…")
    try:
        values = msgpack.unpackb(data, use_list=False)
        manifest = _child(*values) if values[0] == CHILD_FORMAT else _built(values)
        if manifest.encode() != data:
            raise BadManifest("the manifest is not in its canonical form")
    except BadManifest:
        raise
    except Exception as error:  # msgpack raises four families, and any type may be anywhere
        raise BadManifest(f"not a manifest: {error}"[:200]) from error
    return manifest


def _child(_: str, name: str, license_: str | None, base: bytes, rows: Any) -> Manifest:
    """Build a child's manifest from its array's values; may raise anything."""
    found = _built(msgpack.unpackb(base, use_list=False))  # not of another child
    if found.encode() != base:
        raise BadManifest("the base's manifest is not in its canonical form")
    return child_of(found, name, license_, tuple(_part(*row) for row in rows))


def _built(values: Any) -> Manifest:
    """Build a manifest from its array's values, in order; may raise anything."""
    kind, name, license_, architecture, layers, width, vocabulary, context, rows, parts = values
    if kind not in (FORMAT, LONG_FORMAT):
        raise BadManifest(
            f"not a manifest of the format {FORMAT!r} or {LONG_FORMAT!r} but of another release's: "
            "remove the model with `p2pinfer model rm`, and add or fetch it again"
        )
    make = _part if kind == FORMAT else _named_part
    names = part_names(layers) if type(layers) is int and 1 <= layers <= LAYERS_MAX else []
    return Manifest(
        name,
        license_,
        architecture,
        layers,
        width,
        vocabulary,
        context,
        tuple(TensorRow(name, type_, tuple(shape)) for name, type_, shape in rows),
        tuple(make(name, *fields) for name, fields in zip(names, parts, strict=True)),
    )


def _part(name: str, size: int, joined: bytes) -> Part:
    if len(joined) % HASH_BYTES:
        raise BadManifest(f"the manifest's {name} has an invalid hash")
    return Part(name, size, _hashes(joined))


def _named_part(name: str, size: int, digest: bytes) -> Part:
    if type(digest) is not bytes or len(digest) != HASH_BYTES:
        raise BadManifest(f"the manifest's {name} has an invalid hash")
    return Part(name, size, (), PartHash(digest.hex()))


def _hashes(joined: bytes) -> tuple[bytes, ...]:
    return tuple(joined[i : i + HASH_BYTES] for i in range(0, len(joined), HASH_BYTES))
